"""Checks of the house plan on source text: imports, circles, sizes, docstrings and untyped dictionaries.

Every check is a function of text, so that tests/test_house_rules.py can plant the error that it must find.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path, root: Path) -> str:
    """Dotted name of a file below `root`; a package's `__init__.py` has the package's name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(text: str) -> set[tuple[str, str | None]]:
    """(module, name) of every import, wherever it stands; the name is None for `import module`."""
    pairs: set[tuple[str, str | None]] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            pairs |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            pairs |= {(node.module or "", alias.name) for alias in node.names}
    return pairs


def imported_modules(text: str, modules: Iterable[str]) -> set[str]:
    """Which of `modules` a text imports: `from a import b` is a.b where that is a module, else a."""
    known = set(modules)
    pairs = {f"{module}.{name}" if f"{module}.{name}" in known else module for module, name in imported_names(text)}
    return pairs & known


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> modules that it imports, for texts by module name."""
    return {name: imported_modules(text, sources) - {name} for name, text in sources.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan), each sorted."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], index[other])
        if lowest[module] == index[module]:
            component = [stack.pop()]
            while component[-1] != module:
                component.append(stack.pop())
            if len(component) > 1:
                components.append(sorted(component))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return components


def lines_that_use(text: str, name: str) -> list[int]:
    """Lines that import `name` from a module, or read it as a module's attribute."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        imports = isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names)
        if imports or (isinstance(node, ast.Attribute) and node.attr == name):
            lines.append(node.lineno)
    return sorted(lines)


def long_functions(text: str, limit: int) -> list[tuple[str, int]]:
    """(name, lines) of functions above `limit` lines, decorators and docstring included."""
    sizes = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno is not None
            sizes.append((node.name, node.end_lineno - first + 1))
    return [(name, size) for name, size in sizes if size > limit]


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | Function):
            continue
        before: ast.stmt | None = None
        for position, statement in enumerate(node.body):
            attribute = isinstance(before, ast.Assign | ast.AnnAssign) and not isinstance(node, Function)
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value.value
                if isinstance(value, str) and (position == 0 or attribute):
                    yield statement.lineno, value
            before = statement


def fragments(text: str) -> list[tuple[int, str]]:
    """(line, first words) of docstrings that begin with "Of " or "What "."""
    begun = ((line, " ".join(docstring.split())) for line, docstring in docstrings(text))
    return [(line, words[:50]) for line, words in sorted(begun) if words.startswith(("Of ", "What "))]


# ---- untyped dictionaries in signatures

DICTIONARIES = {"dict", "Dict", "Mapping", "MutableMapping", "defaultdict", "OrderedDict"}
ANYTHING = {"Any", "object"}


def is_untyped(annotation: ast.expr | None, aliases: Iterable[str] = ()) -> bool:
    """Whether an annotation holds a bare dictionary or one of Any or object, in any spelling or under an alias."""
    if annotation is None:
        return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return is_untyped(ast.parse(annotation.value, mode="eval").body, aliases)
    if isinstance(annotation, ast.Subscript) and _last_name(annotation.value) in DICTIONARIES:
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return any(_last_name(part) in ANYTHING or is_untyped(part, aliases) for part in inner)
    if _last_name(annotation) in DICTIONARIES or _last_name(annotation) in set(aliases):
        return True
    return any(is_untyped(part, aliases) for part in ast.iter_child_nodes(annotation) if isinstance(part, ast.expr))


def _last_name(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def untyped_aliases(text: str) -> set[str]:
    """Names of a module that stand for an untyped dictionary: `Json = dict[str, Any]`."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript) and is_untyped(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AnnAssign) and _last_name(node.annotation) == "TypeAlias" and is_untyped(node.value):
            names.add(ast.unparse(node.target))
        if type(node).__name__ == "TypeAlias" and is_untyped(node.value):  # Python 3.12's `type X = ...`
            names.add(ast.unparse(node.name))
    return names


def untyped_signatures(text: str, aliases: Iterable[str] = ()) -> dict[str, set[str]]:
    """Top-level name -> its functions whose signature holds an untyped dictionary: itself, or a class's public ones."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(text).body:
        inside = [node] if isinstance(node, Function) else node.body if isinstance(node, ast.ClassDef) else []
        for function in inside:
            if isinstance(function, Function) and (function is node or _is_public(function.name)):
                arguments = function.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
                if any(is_untyped(each.annotation, aliases) for each in every) or is_untyped(function.returns, aliases):
                    found.setdefault(node.name, set()).add(function.name)
    return found


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__")


def used_names(text: str, modules: Iterable[str]) -> set[tuple[str, str]]:
    """(module, name) of what a text takes from `modules`: imported by name, or read from an imported module."""
    known, tree = set(modules), ast.parse(text)
    bound: dict[str, str] = {}
    pairs: set[tuple[str, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    bound[alias.asname or alias.name] = whole
                elif node.module in known:
                    pairs.add((str(node.module), alias.name))
        elif isinstance(node, ast.Import):
            bound |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in known}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in bound:
            pairs.add((bound[ast.unparse(node.value)], node.attr))
    return pairs


def untyped_crossings(sources: Mapping[str, str], package_of: Mapping[str, str]) -> set[str]:
    """Functions with untyped dictionaries in their signature that a module of another package takes.

    Args:
        sources: Text by module name.
        package_of: Package by module name; what stays inside one is its own business.

    Returns:
        `module.function` or `module.Class.function`.
    """
    aliases = set().union(*(untyped_aliases(text) for text in sources.values()))
    untyped = {module: untyped_signatures(text, aliases) for module, text in sources.items()}
    exported = {module: used_names(text, sources) for module, text in sources.items()}
    crossings: set[str] = set()
    for module in sources:
        for home, name in exported[module]:
            origin = _origin(home, name, exported)
            if package_of[module] != package_of[origin]:
                for function in untyped[origin].get(name, ()):
                    crossings.add(".".join([origin, name] if function == name else [origin, name, function]))
    return crossings


def _origin(module: str, name: str, exported: Mapping[str, set[tuple[str, str]]]) -> str:
    """The module that defines a name which packages hand on in their `__init__.py`."""
    for home, given in exported[module]:
        if given == name and home != module:
            return _origin(home, name, exported)
    return module
