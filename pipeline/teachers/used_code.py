"""The digest of the part of a user's file that a function of it can depend on.

A plain function or class of the file counts only where something that counts names it. Everything
else of the file runs when it is imported, and counts. Code that can reach the file's names in
another way than by writing them makes the whole file count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from pipeline.source_digest import parse_source, tree_digest

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = _Function | ast.ClassDef
# Functions that give access to names that the code does not write.
_REFLECTION = {"compile", "dir", "eval", "exec", "globals", "locals", "vars"}
_REFLECTING_ATTRIBUTES = {"__globals__", "__subclasses__", "f_back", "f_globals"}
# Packages that find the names of a module, or that load objects by the names of their classes.
_REFLECTING_PACKAGES = {
    "builtins",
    "cloudpickle",
    "ctypes",
    "dill",
    "gc",
    "importlib",
    "inspect",
    "joblib",
    "linecache",
    "marshal",
    "pickle",
    "pkgutil",
    "runpy",
    "shelve",
    "sys",
}
# Expressions without calls: nothing happens when Python evaluates them.
_INERT = (
    ast.Attribute,
    ast.BinOp,
    ast.Constant,
    ast.Dict,
    ast.List,
    ast.Name,
    ast.Set,
    ast.Slice,
    ast.Starred,
    ast.Subscript,
    ast.Tuple,
    ast.UnaryOp,
    ast.expr_context,
    ast.operator,
    ast.unaryop,
)
_SAFE_LOADERS = {"load_file", "load_state_dict"}
_DESCRIPTORS = {"classmethod", "deleter", "getter", "property", "setter", "staticmethod"}


def used_digest(text: str, module: str, names: Iterable[str]) -> str:
    """SHA-256 of the code of a file that some of its names can depend on.

    Comments, docstrings and layout do not count.

    Args:
        text: The text of the file.
        module: The last part of the name under which the file can be imported.
        names: The names that matter, such as that of the factory.
    """
    tree = parse_source(text)
    used = _used(tree.body, set(names))
    nodes = [node for part in used for node in ast.walk(part)]
    named = {name for part in used for name in _named(part)}
    reflects = any(_reflects(node, module, named) for node in nodes) or _loads_objects(nodes)
    return tree_digest(tree if reflects or module == "__init__" else ast.Module(used, []))


def _used(body: list[ast.stmt], names: set[str]) -> list[ast.stmt]:
    """The statements of a module that count, in their order."""
    plain = _plain_definitions(body)
    kept = [part for part in body if not (_is_for_scripts(part) or part in plain)]
    fresh = names | {name for part in kept for name in _named(part)}
    while fresh:
        found = [part for part in plain if part.name in fresh and part not in kept]
        kept += found
        fresh = {name for part in found for name in _named(part)}
    return [part for part in body if part in kept]


def _plain_definitions(body: list[ast.stmt]) -> list[_Definition]:
    """The functions and classes whose definition does nothing but to bind their name."""
    trusted = _names_of_torch(body) | {"object"}
    plain: list[_Definition] = []
    for part in body:
        if isinstance(part, _Function) and _is_plain_function(part):
            plain.append(part)
        elif isinstance(part, ast.ClassDef) and _is_plain_class(part, trusted):
            plain.append(part)
            trusted.add(part.name)
        elif isinstance(part, _Definition):
            trusted.discard(part.name)
    return plain


def _is_plain_function(part: _Function) -> bool:
    if part.name.startswith("__") or part.decorator_list:
        return False
    return _is_quiet(part)


def _is_quiet(part: _Function) -> bool:
    """Whether nothing happens when the defaults and annotations of a function are evaluated."""
    arguments = part.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    values = [argument.annotation for argument in every]
    values += [*arguments.defaults, *arguments.kw_defaults, part.returns]
    return all(map(_is_inert, values))


def _is_plain_class(part: ast.ClassDef, trusted: set[str]) -> bool:
    """Whether a class has neither decorators nor a base that could see it, and a body of methods.

    Args:
        part: The class.
        trusted: Names of bases, or of modules of bases, that do nothing when a class derives from
            them.
    """
    if part.decorator_list or part.keywords or not all(map(_is_inert, part.bases)):
        return False
    if not all(_first_name(base) in trusted for base in part.bases):
        return False
    return all(_is_plain_member(member, trusted) for member in part.body)


def _is_plain_member(member: ast.stmt, trusted: set[str]) -> bool:
    if isinstance(member, _Function):
        decorators = member.decorator_list
        described = all(_is_inert(each) and _last_name(each) in _DESCRIPTORS for each in decorators)
        return described and member.name != "__init_subclass__" and _is_quiet(member)
    if isinstance(member, ast.ClassDef):
        return _is_plain_class(member, trusted)
    if isinstance(member, ast.Assign):
        hooks = any("__init_subclass__" in ast.unparse(target) for target in member.targets)
        return _is_constant(member.value) and not hooks
    if isinstance(member, ast.AnnAssign):
        return _is_inert(member.annotation) and _is_constant(member.value)
    return isinstance(member, ast.Pass)


def _is_constant(value: ast.expr | None) -> bool:
    """Whether a value is written out. Another one may be told of the class that it is put into."""
    names = (ast.Name, ast.Attribute)
    return value is None or (
        _is_inert(value) and not any(isinstance(node, names) for node in ast.walk(value))
    )


def _is_inert(value: ast.expr | None) -> bool:
    return value is None or all(isinstance(node, _INERT) for node in ast.walk(value))


def _names_of_torch(body: list[ast.stmt]) -> set[str]:
    """The names that the imports of a module bind to torch, its modules and its classes."""
    found: dict[str, set[str]] = {}
    for part in body:
        if isinstance(part, ast.Import):
            for alias in part.names:
                bound = alias.asname or alias.name.partition(".")[0]
                found.setdefault(bound, set()).add(alias.name.partition(".")[0])
        elif isinstance(part, ast.ImportFrom):
            package = "" if part.level else (part.module or "").partition(".")[0]
            for alias in part.names:
                found.setdefault(alias.asname or alias.name, set()).add(package)
    return {name for name, packages in found.items() if packages == {"torch"}}


def _is_for_scripts(part: ast.stmt) -> bool:
    """Whether the statement is ``if __name__ == "__main__":``, which an import does not run."""
    if not isinstance(part, ast.If) or part.orelse:
        return False
    return ast.unparse(part.test) in ("__name__ == '__main__'", "'__main__' == __name__")


def _named(part: ast.stmt) -> Iterator[str]:
    """The names that a statement writes, also in texts, such as annotations."""
    if isinstance(part, ast.Assign) and [ast.unparse(each) for each in part.targets] == ["__all__"]:
        return  # this list is for other modules
    for node in ast.walk(part):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\w+", node.value)


def _reflects(node: ast.AST, module: str, named: set[str]) -> bool:
    """Whether a piece of code can reach names of its module that it does not write.

    Args:
        node: The piece of code.
        module: The name of the module, which may import itself.
        named: All names that the code writes. An import that it does not use reaches nothing.
    """
    if isinstance(node, ast.Name):
        special = node.id.startswith("__") and isinstance(node.ctx, ast.Load)
        return node.id in _REFLECTION or (special and node.id != "__class__")
    if isinstance(node, ast.Attribute):
        return node.attr in _REFLECTING_ATTRIBUTES | _REFLECTING_PACKAGES
    if isinstance(node, ast.Import | ast.ImportFrom):
        origin = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            words = {*origin.split("."), *alias.name.split(".")}
            if words & {"load", module, *_REFLECTING_PACKAGES}:
                bound = alias.asname or alias.name.partition(".")[0]
                if bound in named:
                    return True
        return any(alias.name == "*" for alias in node.names)
    return False


def _loads_objects(nodes: Iterable[ast.AST]) -> bool:
    """Whether code may load a file that names classes, as ``torch.load`` does, and makes them."""
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    safe = {id(call.func) for call in calls if _is_weights_only(call)}
    found = (node for node in nodes if isinstance(node, ast.Name | ast.Attribute))
    return any(_is_loader(_last_name(node)) and id(node) not in safe for node in found)


def _is_loader(name: str) -> bool:
    return name == "load" or (name.startswith("load_") and name not in _SAFE_LOADERS)


def _is_weights_only(call: ast.Call) -> bool:
    given = {each.arg: each.value for each in call.keywords}
    only = given.get("weights_only")
    return isinstance(only, ast.Constant) and only.value is True


def _first_name(value: ast.expr) -> str:
    return ast.unparse(value).partition(".")[0]


def _last_name(value: ast.expr) -> str:
    return ast.unparse(value).rpartition(".")[2]
