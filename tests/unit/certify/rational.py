"""Exact linear algebra in fractions, to judge bounds that claim to include rounding."""

from fractions import Fraction


def exact(tensor):
    """The numbers of a vector or matrix as fractions."""
    return [exact(row) if row.ndim else Fraction(float(row)) for row in tensor]


def pivots(A):
    """Pivots of the elimination without exchanges: all positive iff ``A`` is positive definite."""
    A, out = [list(row) for row in A], []
    for k in range(len(A)):
        out.append(A[k][k])
        if not A[k][k]:
            break
        for i in range(k + 1, len(A)):
            f = A[i][k] / A[k][k]
            A[i] = [a - f * b for a, b in zip(A[i], A[k], strict=True)]
    return out


def definite(A):
    """Whether a symmetric matrix of fractions is positive definite."""
    found = pivots(A)
    return len(found) == len(A) and all(p > 0 for p in found)


def solve(A, b):
    """``A^-1 b`` for a positive definite ``A``."""
    rows = [[*row, value] for row, value in zip(A, b, strict=True)]
    n = len(rows)
    for k in range(n):
        for i in range(k + 1, n):
            f = rows[i][k] / rows[k][k]
            rows[i] = [a - f * c for a, c in zip(rows[i], rows[k], strict=True)]
    x = [Fraction(0)] * n
    for k in reversed(range(n)):
        x[k] = (rows[k][n] - sum(rows[k][j] * x[j] for j in range(k + 1, n))) / rows[k][k]
    return x
