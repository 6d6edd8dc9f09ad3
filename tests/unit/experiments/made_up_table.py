"""A small table that is registered like the others: 80 rows, one rising and one falling feature."""

import hashlib

import torch

from wellposed.data.digests import DataFile
from wellposed.data.table_layouts import Raw
from wellposed.data.tables import Table, check_order, numbers, parse
from wellposed.data.tabular import TABLES, TableDescription

FEATURES = ("dose", "age", "weight")
SIGNS = (1, 0, -1)


def rows(binary):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(80, 3, generator=generator, dtype=torch.float64).round(decimals=4)
    y = 3 * x[:, 0] + torch.sin(6 * x[:, 1]) - 2 * x[:, 2]
    y = (y > y.median()).double() if binary else (10 * y + 4).round(decimals=4)
    return x, y


def layout(open_file):
    content = open_file("table")
    columns = parse(content.data.decode(), content.name)
    check_order(tuple(columns), FEATURES, content.name)
    x = [numbers(columns[name], name, content.name) for name in FEATURES]
    return Raw(Table(FEATURES, torch.stack(x, 1), numbers(columns["y"], "y", content.name)))


def register(patch, folder, *, binary=False, header=(*FEATURES, "y"), known=True):
    """Write the table into a folder and make it known as `made_up`."""
    x, y = rows(binary)
    lines = [",".join(header)]
    lines += [",".join(f"{v:.4f}" for v in (*row, t)) for row, t in zip(x, y, strict=True)]
    data = ("\n".join(lines) + "\n").encode()
    place = folder / "tabular" / "made_up"
    place.mkdir(parents=True, exist_ok=True)
    (place / "table.csv").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest() if known else "0" * 64
    description = TableDescription(
        "tabular/made_up",
        {"table": DataFile(("table.csv",), digest)},
        layout,
        "binary" if binary else "regression",
        ("dose",),
        ("weight",),
        "Made up for this test.",
    )
    patch.setitem(TABLES, "made_up", description)
    patch.setenv("WELLPOSED_DATA", str(folder))
