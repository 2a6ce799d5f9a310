"""A rule of import-linter: the modules directly in a package are imported by nothing but a few named ones."""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class TopContract(Contract):
    """No module imports one that lies directly in ``package`` and is no package, except those in ``allowed``.

    So no experiment knows another, and nothing below knows any.
    """

    package = fields.StringField()
    allowed = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        top = sorted(name for name in graph.find_children(self.package) if not graph.find_children(name))
        broken = [
            (importer, name)
            for name in top
            for importer in sorted(graph.find_modules_that_directly_import(name) - self.allowed)
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, name in check.metadata["broken"]:
            output.print_error(f"{importer} imports {name}", bold=False)
