"""The changes of `make mutants`: every way to change a module in one place."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import CodeType

PACKAGE = Path(__file__).resolve().parent.parent / "airflow_provider_onebox"

# A test that notices a bound moved by one also notices a reversed comparison.
PAIRS = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn, ast.And: ast.Or}
PAIRS |= {ast.Add: ast.Sub, ast.Mult: ast.Div}
OTHERS = {**PAIRS, **{other: one for one, other in PAIRS.items()}, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult}


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    key: tuple[str, str, str]  # module, statement before and after, as in the list of equivalent mutants
    line: int
    code: CodeType
    lines: Sequence[int]
    runs_at_import: bool


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yield replacements for a node, which is not changed."""
    match node:
        case ast.cmpop() | ast.boolop() | ast.operator() if type(node) in OTHERS:
            yield OTHERS[type(node)]()
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            # By one where that matters; sizes and long pauses need not be exact.
            yield ast.Constant(value + 1 if value < 10 else 2 * value)
        case ast.Constant(value=str(value)) if value and not set(value) & {" ", "\n"}:
            yield ast.Constant(f"{value}_")
        case ast.Call(ast.Name("min" | "max" | "isinstance" | "getattr" | "hasattr" | "suppress")):
            return  # Swapped arguments change nothing or raise.
        case ast.Call(args=[first, second, *rest]) if not isinstance(second, ast.Starred):
            yield ast.Call(node.func, [second, first, *rest], node.keywords)
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(ast.Call() | ast.Await()) | ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Raise() | ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break():
            yield ast.Pass()


def children(node: ast.AST) -> Iterator[tuple[Any, Any, ast.AST]]:
    """Yield the replaceable children of a node: their holder, their key in it, and the child."""
    skipped = {"annotation", "returns", "decorator_list", "ctx", "op" if isinstance(node, ast.AugAssign) else ""}
    for name, value in ast.iter_fields(node):
        for key, child in enumerate(value) if isinstance(value, list) else [(name, value)]:
            match child:
                case ast.JoinedStr() | ast.FormattedValue() | ast.Expr(ast.Constant()):
                    continue  # Messages for people.
                case ast.If(ast.Name("TYPE_CHECKING")):
                    continue
                case ast.AST() if name not in skipped:
                    yield value if isinstance(value, list) else vars(node), key, child


def mutants_of(path: Path) -> list[Mutant]:
    """Make every mutant of a module."""
    module, found = str(path.relative_to(PACKAGE)), []
    tree = ast.parse(path.read_text())

    def visit(parent: ast.AST, statement: ast.AST, body: ast.AST) -> None:
        for holder, key, child in children(parent):
            own = child if isinstance(child, ast.stmt) else statement
            inside = child if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else body
            is_test = key == "test" and not isinstance(child, (ast.Compare, ast.UnaryOp, ast.BoolOp))
            negated = [ast.UnaryOp(ast.Not(), child)] if is_test else []  # type: ignore[arg-type]
            for other in (*negated, *variants(child)):
                ast.copy_location(other, child)
                before = ast.unparse(own).partition("\n")[0]
                holder[key] = other
                after = ast.unparse(other if own is child else own).partition("\n")[0]
                code = compile(ast.fix_missing_locations(tree), path, "exec")
                holder[key] = child
                if isinstance(own, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    before, after = ast.unparse(child), f"{ast.unparse(other)} in {own.name}"
                line = getattr(child, "lineno", getattr(parent, "lineno", 0))
                # Code that runs at import, such as a signature, is tested by the tests of the body or module.
                at_import = own is body or body is tree
                lines = range(getattr(body, "lineno", 1), (getattr(body, "end_lineno", None) or 10**4) + 1)
                found.append(Mutant((module, before, after), line, code, lines if at_import else [line], at_import))
            visit(child, own, inside)

    visit(tree, tree, tree)
    return found
