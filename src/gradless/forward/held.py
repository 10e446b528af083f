"""What a closure holds: the tensors that are its data, and whether two closures are alike but for these.

``opt.step(lambda: model(**batch).loss)`` makes a new function every step. Its code is the same, and so are the model
and the numbers that it refers to; the tensors of the batch differ. They are found in its variables, arguments that were
bound, attributes of the object that it is a method of, and globals, also inside of lists, dictionaries and data
classes, and inside of functions of the same module that it refers to.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

PARTS = 1024  # that a closure may consist of: searching more would take longer than the step
PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)  # told by their value


class NotRecordable(Exception):
    """Why an evaluation cannot be recorded and replayed."""


class Held(NamedTuple):
    """What a closure holds."""

    key: Hashable  # equal for closures that differ in the values of these tensors only
    tensors: list[Tensor]  # in an order that equal keys share
    objects: list[Any]  # that the key names by their identity, which must live as long as it


def held(closure: Callable[[], Any], constants: Container[int]) -> Held:
    """What a closure holds; parameters, and tensors whose id is among the constants, are no data.

    Raises:
        NotRecordable: it refers to too much.
    """
    search = _Search(constants, getattr(closure, "__globals__", None))
    return Held(search.key(closure), search.tensors, search.objects)


class _Search:
    def __init__(self, constants: Container[int], module: dict[str, Any] | None) -> None:
        self.constants = constants
        self.module = module
        self.tensors: list[Tensor] = []
        self.objects: list[Any] = []
        self.seen: dict[int, int] = {}

    def key(self, value: Any) -> Hashable:
        """The value's part of the key."""
        if isinstance(value, PLAIN):
            return (type(value), value)
        if id(value) in self.seen:
            return ("again", self.seen[id(value)])
        self.seen[id(value)] = len(self.seen)
        if len(self.seen) > PARTS:
            raise NotRecordable(f"the closure refers to more than {PARTS} things: give it the tensors of its batch")
        if isinstance(value, Tensor) and not (isinstance(value, torch.nn.Parameter) or id(value) in self.constants):
            self.tensors.append(value)
            return ("tensor", value.shape, value.stride(), value.dtype, value.device)
        parts = self._parts(value)
        if parts is None:
            self.objects.append(value)
            return ("object", id(value))
        return (type(value), *((name, self.key(part)) for name, part in parts))

    def _parts(self, value: Any) -> Iterator[tuple[Hashable, Any]] | None:
        """What a value consists of; None: it is one thing."""
        if isinstance(value, types.FunctionType):
            return self._variables(value)
        if isinstance(value, types.MethodType):
            own = value.__self__
            state = {} if isinstance(own, (torch.nn.Module, type)) else getattr(own, "__dict__", {})
            self.objects.append(own)
            return iter([("function", value.__func__), ("object", id(own)), *state.items()])
        if isinstance(value, functools.partial):
            return iter([("function", value.func), ("arguments", value.args), ("keywords", value.keywords)])
        if isinstance(value, Mapping):
            return iter((self._named(name), part) for name, part in value.items())
        if isinstance(value, (list, tuple)):
            return iter(enumerate(value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return iter((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return None

    def _named(self, name: Any) -> Hashable:
        return name if isinstance(name, PLAIN) else id(name)

    def _variables(self, function: types.FunctionType) -> Iterator[tuple[Hashable, Any]]:
        """The variables of a function, and what makes it the function that it is."""
        self.objects.append(function.__code__)
        yield "code", id(function.__code__)
        if function.__globals__ is not self.module:
            return
        yield "defaults", function.__defaults__
        yield "keywords", function.__kwdefaults__
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # nothing was assigned yet
                yield name, None
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                yield name, function.__globals__[name]


def _names(code: types.CodeType) -> set[str]:
    """Global names that a code refers to, that of functions inside included."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
