"""Tables: what they hold, and what is said about missing values and features out of order."""

from __future__ import annotations

import pytest
import torch

from wellposed.data.tables import Table, feature_signs, one_hot, read_table
from wellposed.data.tabular import TABLES, has_table, load_table
from wellposed.errors import ConfigError, DataError, ShapeError

SIZES = {
    "heart": (242, 61, 13),
    "auto_mpg": (314, 78, 7),
    "compas": (4937, 1235, 13),
    "blog_feedback": (5710, 1914, 280),
    "lending": (20457, 5114, 10),
    "toy_trigger": (32000, 8000, 4),
}
DROPPED = {"auto_mpg": 6, "lending": 29_092 - 25_571}


def test_every_table_has_a_size_here():
    assert SIZES.keys() == TABLES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_sizes_digests_and_signs(name):
    if not has_table(name):
        pytest.skip(f"the table `{name}` is absent: put it into a folder of $WELLPOSED_DATA")
    found = load_table(name)
    train, test, d = SIZES[name]
    assert found.train.x.shape == (train, d)
    assert found.test.x.shape == (test, d)
    assert found.train.features == found.test.features
    assert len(found.signs) == d
    assert any(found.signs)
    assert found.dropped == DROPPED.get(name, 0)
    assert len(found.digests) == len(TABLES[name].files)
    if found.task == "binary":
        assert set(found.train.y.unique().tolist()) == {0.0, 1.0}
        assert set(found.test.y.unique().tolist()) == {0.0, 1.0}


def need(name):
    if not has_table(name):
        pytest.skip(f"the table `{name}` is absent")
    return load_table(name)


def test_heart_is_the_variant_of_the_papers():
    found = need("heart")
    assert int(found.train.y.sum()) == 70
    assert int(found.test.y.sum()) == 13
    assert found.signs == (0, 0, 0, 1, 1, *[0] * 8)


def test_compas_is_filtered_as_published():
    found = need("compas")
    y = torch.cat([found.train.y, found.test.y])
    assert len(y) == 6172
    assert float(y.mean()) == pytest.approx(0.455, abs=5e-4)
    assert found.signs == (1, 1, 1, 1, *[0] * 9)
    ones = torch.cat([found.train.x, found.test.x])[:, 5:]
    assert set(ones.unique().tolist()) == {0.0, 1.0}
    assert ones.sum(1).unique().tolist() == [2.0]


def test_blog_feedback_is_split_by_day():
    found = need("blog_feedback")
    assert int(found.train.group.max()) < int(found.test.group.min())


def test_large_targets_are_left_out_by_a_quantile_of_the_training_part():
    found = need("blog_feedback")
    top = float(found.train.y.quantile(0.9))
    small = found.small_targets(0.9)
    assert float(small.train.y.max()) == 1
    assert float(small.test.y.max()) <= 1
    assert len(small.test) == int((found.test.y <= top).sum()) < len(found.test)
    assert torch.equal(small.test.y * top, found.test.y[found.test.y <= top])
    for part in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="quantile"):
            found.small_targets(part)
    with pytest.raises(ConfigError, match="target_quantile"):
        found.small_targets(0.1)


def test_classes_have_no_quantile():
    with pytest.raises(ConfigError, match="task binary"):
        need("heart").small_targets(0.9)


def test_a_seed_splits_what_has_no_split():
    one, same = need("auto_mpg"), need("auto_mpg")
    other = load_table("auto_mpg", seed=1)
    assert torch.equal(one.train.x, same.train.x)
    assert not torch.equal(one.train.x, other.train.x)


def test_absent_and_unknown_tables(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean `compas`"):
        load_table("compass")
    monkeypatch.setenv("WELLPOSED_DATA", str(tmp_path))
    monkeypatch.setattr("wellposed.data.tabular.search_folders", lambda folder: [tmp_path])
    assert not has_table("heart")
    with pytest.raises(DataError, match=r"heart_train\.csv") as error:
        load_table("heart")
    assert "nothing is downloaded" in str(error.value)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "auto-mpg.csv").write_text("mpg,cylinders\n1,2\n")
    with pytest.raises(DataError, match="SHA-256"):
        load_table("auto_mpg", tmp_path)


def write(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_a_table_of_ones_own(tmp_path):
    path = write(tmp_path, "id,price,name,size,sold\n7,1.5,a,2,0\n8,2.5,b,3,1\n\n")
    table = read_table(path, ["price", "size"], "sold")
    assert table.x.tolist() == [[1.5, 2.0], [2.5, 3.0]]
    assert table.y.tolist() == [0.0, 1.0]
    assert feature_signs(table.features, falling=["price"]) == (-1, 0)


def test_features_out_of_the_declared_order(tmp_path):
    path = write(tmp_path, "size,price,sold\n1,2,0\n")
    with pytest.raises(DataError, match="out of the declared order") as error:
        read_table(path, ["price", "size"], "sold")
    assert "size, price" in str(error.value)


@pytest.mark.parametrize("cell", ["", "?", "NA", "nan"])
def test_missing_values(tmp_path, cell):
    path = write(tmp_path, f"price,size,sold\n1,2,0\n1,{cell},1\n3,4,1\n")
    with pytest.raises(DataError, match="`size` is missing in row 1"):
        read_table(path, ["price", "size"], "sold")
    assert len(read_table(path, ["price", "size"], "sold", drop_missing=True)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("price,price,sold\n1,2,0\n", "two columns"),
        ("price,size,sold\n1,2\n", "2 cells"),
        ("price,sold\n1,0\n", "no column `size`"),
        ("price,size\n1,0\n", "`sold` for the target"),
        ("price,size,sold\n1,big,0\n", "no number"),
    ],
)
def test_broken_files(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read_table(write(tmp_path, text), ["price", "size"], "sold")


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(DataError, match="cannot be read"):
        read_table(path, ["a"], "b")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_table(path, ["a"], "b")


def table(n=10):
    x = torch.arange(2 * n, dtype=torch.float64).reshape(n, 2)
    return Table(("a", "b"), x, x[:, 0].clone())


def test_parts_of_a_table():
    first, second = table().split(0.3, seed=0)
    assert (len(first), len(second)) == (7, 3)
    assert torch.cat([first.y, second.y]).sort().values.tolist() == table().y.tolist()
    for bad in (0, 1, 0.01, -1):
        with pytest.raises(ConfigError, match="part"):
            table().split(bad, seed=0)


def test_bad_tables():
    with pytest.raises(ShapeError, match="float64"):
        Table(("a",), torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ShapeError, match="expected"):
        Table(("a",), torch.zeros(3, 2).double(), torch.zeros(3).double())
    with pytest.raises(ShapeError, match="group"):
        Table(("a",), torch.zeros(3, 1).double(), torch.zeros(3).double(), torch.zeros(2).long())
    broken = torch.zeros(3, 1).double()
    broken[1] = torch.nan
    with pytest.raises(DataError, match="`a` is missing in 1 of 3 rows, first in row 1"):
        Table(("a",), broken, torch.zeros(3).double())
    with pytest.raises(DataError, match="target"):
        Table(("a",), torch.zeros(3, 1).double(), broken[:, 0])


def test_bad_signs_and_categories():
    with pytest.raises(ConfigError, match="no feature `c`"):
        feature_signs(("a", "b"), rising=("c",))
    with pytest.raises(ConfigError, match="both rise and fall"):
        feature_signs(("a", "b"), rising=("a",), falling=("a",))
    with pytest.raises(DataError, match="'z' in row 1"):
        one_hot(["x", "z"], "kind", ("x", "y"), "here")
