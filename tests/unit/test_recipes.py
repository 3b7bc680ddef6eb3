import os
import subprocess
import sys
import textwrap

import cloudpickle
import pytest

from toolkit.core.errors import ExperimentError
from toolkit.core.recipes import FILE_MODULE, load_experiment, recipe_folders, user_modules

GOOD = """
from toolkit import Dataset, Experiment, Int, Metric, XGBoost

def load():
    return "table.csv"

def experiment():
    return Experiment(name="tiny", dataset=Dataset(load, "label"), model=XGBoost(), space={"max_depth": Int(1, 9)},
                      metric=Metric("auc", "maximize"))
"""


@pytest.fixture(autouse=True)
def _own_imports(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def refusal(name, search_in=None):
    with pytest.raises(ExperimentError) as caught:
        load_experiment(name, search_in)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["my-first", "my_first", "my.py", "./my.py", "sub/my.py:other", "my-first:other"])
def test_names(tmp_path, name):
    for path in (tmp_path / "experiments" / "my_first.py", tmp_path / "my.py", tmp_path / "sub" / "my.py"):
        write(path, GOOD + "\nother = experiment\n")
    assert load_experiment(name).name == "tiny"


def test_an_edit_is_seen_and_nothing_is_left_beside_the_file(tmp_path, monkeypatch):
    """With cached bytecode, an edit of the same length within the same second is not."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = write(tmp_path / "mine.py", GOOD)
    assert load_experiment("mine.py").name == "tiny"
    stat = path.stat()
    path.write_text(path.read_text().replace("tiny", "full"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_experiment("mine.py").name == "full"
    assert list(tmp_path.iterdir()) == [path]


def test_package_and_function(tmp_path):
    write(tmp_path / "mine" / "__init__.py", "")
    write(tmp_path / "mine" / "first.py", GOOD)
    assert load_experiment("mine.first:experiment").name == "tiny"


def test_the_users_folder_comes_before_ours(tmp_path):
    write(tmp_path / "experiments" / "wine_quality.py", GOOD)
    assert load_experiment("wine-quality").name == "tiny"
    assert recipe_folders()[0] == tmp_path / "experiments"


def test_unknown(tmp_path):
    for name in ("wine_quality", "digits", "_private"):
        write(tmp_path / "here" / f"{name}.py", GOOD)
    folder = [tmp_path / "here"]
    assert (
        refusal("wine-qualty", folder) == "unknown experiment, got 'wine-qualty'; did you mean 'wine-quality'? known: digits, wine-quality"
    )
    assert "known: digits, wine-quality; or give path/to/file.py or package.module:function" in refusal("zzz", folder)
    assert "unknown experiment" in refusal("_private", folder)
    assert "none are known" in refusal("x", [tmp_path / "nowhere"])


def test_a_file_that_does_not_exist():
    assert refusal("no/such.py") == "an experiment's file must exist, got no/such.py; give the path from the working directory"


def test_a_module_that_does_not_exist():
    assert "the experiment's module cannot be found, got 'no.such'" in refusal("no.such:experiment")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os\n\nx = 1 / 0\n", "ZeroDivisionError: division by zero (bad.py, line 3); mend that line"),
        ("import os\ndef experiment(:\n", "SyntaxError: invalid syntax (bad.py, line 2)"),
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library' (bad.py, line 1); install no_such_library"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (bad.py, line 2)"),
        ("x = 1\n", "bad.py needs a function experiment() -> Experiment, got none"),
        ("def experimnt():\n    return 1\n", "got none; did you mean 'experimnt'?"),
        ("def experiment():\n    return {}\n", "experiment() must return an Experiment, got dict from bad.py, line 1"),
        ("def experiment():\n    pass\n", "experiment() must return an Experiment, got NoneType from bad.py, line 1"),
        (
            "def experiment():\n    x = {}\n    return x['a']\n",
            "experiment() must return an Experiment, got KeyError: 'a' (bad.py, line 3)",
        ),
        ("\ndef experiment(seed):\n    pass\n", "missing 1 required positional argument: 'seed' (bad.py, line 2)"),
        ("import helper\n", "ValueError: broken helper (helper.py, line 2)"),
        ("from toolkit import Split\nSplit(test=1.5)\n", "Split.test: must be less than 1, got 1.5 (bad.py, line 2)"),
        (
            GOOD.replace("Int(1, 9)", "Int(9, 1)"),
            "Int: low <= high must hold, got low=9, high=1 (bad.py, line 8)",
        ),
        (
            GOOD.replace('"auc"', '"acu"'),
            "metric: binary:logistic does not report it, got 'acu'; did you mean 'auc'? (bad.py, line",
        ),
        (
            GOOD.replace('{"max_depth": Int(1, 9)}', "{}"),
            "space: needs at least one Float, Int, Categorical or Branch, got an empty space",
        ),
    ],
)
def test_a_file_that_does_not_work(tmp_path, text, words):
    write(tmp_path / "helper.py", "\nraise ValueError('broken\\nhelper')\n")
    write(tmp_path / "bad.py", text)
    assert words in refusal("bad.py")


def test_a_module_that_does_not_work(tmp_path):
    write(tmp_path / "half_broken" / "__init__.py", "")
    write(tmp_path / "half_broken" / "first.py", "import half_broken.second\n")
    write(tmp_path / "half_broken" / "second.py", "\nraise OSError('no')\n")
    assert "got OSError: no (half_broken/second.py, line 2)" in refusal("half_broken.first:experiment")


def test_user_modules_are_those_of_the_users_folders(tmp_path):
    write(tmp_path / "beside.py", "def answer():\n    return 42\n")
    write(tmp_path / "tool" / "__init__.py", "")
    write(tmp_path / "tool" / "inner.py", "X = 1\n")
    write(tmp_path / "mine.py", "import json\nimport numpy\nimport beside\nimport tool.inner\n" + GOOD)
    names = {module.__name__ for module in user_modules(load_experiment("mine.py"))}
    assert names == {FILE_MODULE + "mine", "beside", "tool", "tool.inner"}


def test_user_modules_of_a_package(tmp_path):
    write(tmp_path / "deep" / "__init__.py", "")
    write(tmp_path / "deep" / "helper.py", "")
    write(tmp_path / "deep" / "first.py", "import deep.helper\n" + GOOD)
    names = {module.__name__ for module in user_modules(load_experiment("deep.first:experiment"))}
    assert names == {"deep", "deep.helper", "deep.first"}


def test_an_experiment_of_the_wheel_travels_too(tmp_path):
    packaged = tmp_path / "site-packages" / "toolkit" / "_recipes"
    write(packaged / "shipped.py", GOOD)
    names = [module.__name__ for module in user_modules(load_experiment("shipped", [packaged]))]
    assert names == [FILE_MODULE + "shipped"]


def test_by_value_they_work_where_nobody_can_import_them(tmp_path):
    write(tmp_path / "here" / "beside.py", "def answer():\n    return 42\n")
    write(tmp_path / "here" / "mine.py", "import beside\n" + GOOD.replace('return "table.csv"', "return beside.answer()"))
    experiment = load_experiment("here/mine.py")
    for module in user_modules(experiment):
        cloudpickle.register_pickle_by_value(module)
    try:
        (tmp_path / "pickle").write_bytes(cloudpickle.dumps(experiment.dataset.load))
    finally:
        for module in user_modules(experiment):
            cloudpickle.unregister_pickle_by_value(module)
    code = "import pickle; print(pickle.load(open('pickle', 'rb'))())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True).stdout == "42\n"
