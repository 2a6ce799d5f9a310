"""The rule of the import linter that this repository made for itself finds what it is for."""

import pytest
from grimp import ImportGraph

from tests.contracts import TopContract

ALLOWED = {"package": "analysis", "allowed": ["analysis.api", "analysis.__main__"]}


@pytest.mark.parametrize(
    ("importer", "imported", "kept"),
    [
        ("analysis.one", "analysis.measure.case", True),
        ("analysis.api", "analysis.one", True),
        ("analysis.__main__", "analysis.api", True),
        ("analysis.one", "analysis.two", False),
        ("analysis.one", "analysis.api", False),
        ("analysis.measure.case", "analysis.one", False),
        ("problems", "analysis.two", False),
    ],
)
def test_only_named_modules_import_commands(importer, imported, kept, capsys):
    graph = ImportGraph()
    for module in ("analysis", "analysis.one", "analysis.two", "analysis.measure", "analysis.measure.case"):
        graph.add_module(module)
    graph.add_import(importer=importer, imported=imported)
    contract = TopContract("", {}, ALLOWED)
    check = contract.check(graph, verbose=False)
    assert check.kept == kept
    contract.render_broken_contract(check)
    assert (f"{importer} imports {imported}" in capsys.readouterr().out) != kept
