"""The graph of a deep network, cut where its layers repeat: each kind of layer is compiled once, and called for every
layer with that layer's weights.

Compiling takes as long as a graph is long, running it no longer for being cut. What an exported graph says of its nodes
tells the layers; two layers are of one kind if they do the same with tensors of the same shapes.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import Graph, GraphModule, Node

from bild.errors import one_line
from bild.models.compiled import processes

logger = logging.getLogger("bild")

LEAST = 16
"""Layers below which cutting is not worth the calls."""
TOGETHER = (2, 3, 1)
"""Layers of a part, the first of these numbers that all of them can be divided by. A call takes six microseconds, one
two-hundredth of what two layers of SmolLM2 take."""
CALLS, WEIGHTS = "bild/calls.json", "bild/weights.safetensors"
"""In a package, beside its parts."""
DENSE: dict[str, Any] = {"memory_format": torch.contiguous_format}
NUMBERED = re.compile(r"(.+)\.(\d+)")


class Call(NamedTuple):
    """One step of a cut graph: a part of it, and where its arguments and results are."""

    part: int
    inputs: list[int]
    outputs: list[int]


@dataclass(frozen=True)
class Cut:
    """A graph as parts that are called one behind the other.

    Arguments and results are numbered places: first the arguments of the whole, then weights, then what parts return.
    """

    parts: list[GraphModule]
    calls: list[Call]
    weights: list[Tensor]
    """Of the layers, made ready for their part; weights of what is no layer are in the parts."""
    places: int
    """How many there are."""

    def write(self, file: Path, options: dict[str, Any]) -> None:
        """Compile the parts, and pack them, how they are called and the weights of the layers into one file.

        Args:
            file: the package.
            options: of the compiler.
        """
        # Only where something is compiled: importing Inductor takes a second.
        from torch._inductor.package.package import package_aoti

        found = _all_compiled(self.parts, options)
        package_aoti(str(file), {f"part{at}": files for at, files in enumerate(found)})
        weights = {str(at): weight for at, weight in enumerate(self.weights)}
        with zipfile.ZipFile(file, "a") as package:
            package.writestr(CALLS, json.dumps({"calls": self.calls, "places": self.places}))
            package.writestr(WEIGHTS, save(weights))


def _all_compiled(parts: Sequence[GraphModule], options: dict[str, Any]) -> list[Any]:
    """The files of each part, compiled side by side where there are cores for it."""

    def compile_one(part: GraphModule) -> Any:
        return _compiled(part, options)

    if processes.can_fork():
        # Not anew in every process: it takes four seconds.
        importlib.import_module("torch._inductor.compile_fx")
        try:
            return processes.each(compile_one, parts)
        except RuntimeError as error:
            logger.info("parts are compiled one after the other (%s)", one_line(error))
    return [compile_one(part) for part in parts]


def _compiled(part: GraphModule, options: dict[str, Any]) -> Any:
    """The files of a part."""
    examples = tuple(node.meta["val"] for node in part.graph.nodes if node.op == "placeholder")
    return torch._inductor.aot_compile(part, examples, options=options)


def read(file: Path) -> tuple[list[int], list[Tensor], int]:
    """How the parts of a package are called, the weights of their layers, and how many places there are.

    Returns:
        Of each call its part, how many arguments and results it has, and their places, all in one list; nothing of a
        package that is whole.
    """
    with zipfile.ZipFile(file) as package:
        if CALLS not in package.namelist():
            return [], [], 0
        told, held = json.loads(package.read(CALLS)), load(package.read(WEIGHTS))
    numbers = [[part, len(inputs), len(outputs), *inputs, *outputs] for part, inputs, outputs in told["calls"]]
    # In memory of their own, each as aligned as torch has it.
    weights = [held[str(at)].clone() for at in range(len(held))]
    return [number for call in numbers for number in call], weights, told["places"]


@dataclass(frozen=True)
class Repeat:
    """How the graph of a few layers stands for that of many (:mod:`.few`)."""

    copies: int
    """Parts of layers that follow the last one, and are as it is."""
    together: int
    """Layers of a part."""
    starts: list[tuple[int, int, int]]
    """Of each argument, its place among the tensors with a few layers and with all, and how many it is with a few."""
    arguments: int
    """Tensors among those, with all."""
    tensor: Callable[[str], Tensor]
    """Of the whole, by name."""

    def place(self, at: int, shift: int) -> int:
        """Of a tensor among the arguments, in the whole.

        Args:
            at: place with a few layers.
            shift: so many layers further.
        """
        short, whole, _ = next(each for each in reversed(self.starts) if each[0] <= at and each[2])
        return whole + at - short + shift


def together_of(count: int) -> int:
    """Layers of a part of so many."""
    return next(each for each in TOGETHER if count % each == 0)


def cut(program: ExportedProgram, module: nn.Module, repeat: Repeat | None = None) -> Cut | None:
    """Cut an exported graph at its layers.

    Args:
        program: of the module.
        module: what was exported.
        repeat: where it has a few layers of many, how the others follow.

    Returns:
        None where it has fewer than :data:`LEAST` layers, they are of many kinds, or they hang together by more than
        what one hands to the next.
    """
    try:
        return _Cutter(program, module, repeat).cut()
    except _NotInLayers:
        return None
    except Exception as error:  # a graph that nobody has thought of can still be compiled whole
        logger.info("%s is compiled whole (%s)", type(module).__name__, one_line(error))
        return None


class _Argument(NamedTuple):
    """An argument of the whole that those of a few layers do not have."""

    place: int


class _NotInLayers(Exception):
    """The graph cannot be cut."""


@dataclass
class _Part:
    """A part of the graph, as it is there."""

    nodes: list[Node]
    outputs: list[Node]
    inputs: dict[Any, int]
    """Place among the arguments of each value from elsewhere; of a tensor whose shape alone matters: of ``(node,)``."""
    form: str
    """The same for parts that do the same."""


class _Cutter:
    def __init__(self, program: ExportedProgram, module: nn.Module, repeat: Repeat | None = None) -> None:
        self.module, self.nodes, self.repeat = module, list(program.graph.nodes), repeat
        by_name = {node.name: node for node in self.nodes if node.op == "placeholder"}
        self.inputs: list[Node] = []
        self.constants: dict[Node, Tensor] = {}
        self.names: dict[Node, str] = {}
        """Of weights as they are in the module."""
        self.path = ""
        """Of the list of layers."""
        for spec in program.graph_signature.input_specs:
            node = by_name[spec.arg.name]
            if spec.kind != InputKind.USER_INPUT:
                held = program.state_dict if spec.target in program.state_dict else program.constants
                self.constants[node], self.names[node] = held[spec.target], spec.target
            elif isinstance(spec.arg, TensorArgument):
                self.inputs.append(node)
        self.numbers = self._numbers()
        """Of every size in the graph one that is made of the sizes of arguments alone, where there is one."""
        self.stage: dict[Node, int] = {}
        """Of what is computed at run time: 0 before the layers, then the layers from 1, then what is behind them."""

    def _numbers(self) -> dict[Node, Node]:
        first: dict[Any, Node] = {}
        known: dict[Node, Node] = {}
        for node in self.nodes:
            if node.op == "call_function" and isinstance(node.meta.get("val"), torch.SymInt):
                if all(each in self.inputs or known.get(each) is each for each in node.all_input_nodes):
                    first.setdefault(_expression(node), node)
                known[node] = first.get(_expression(node), node)
        return known

    def cut(self) -> Cut:
        layers = self._layers()
        count = 1 + max(layers.values(), default=-1)
        if self.repeat is None and count < LEAST:
            raise _NotInLayers
        together = together_of(count) if self.repeat is None else self.repeat.together
        layers, count = {node: number // together for node, number in layers.items()}, count // together
        self._assign(layers, count)
        self._hoist(count)
        stages = range(count + 2)
        found = [self._part([node for node in self.nodes if self.stage.get(node) == s]) for s in stages]
        found[-1].outputs = [node for node in self._results() if node in self.stage]
        kinds = len({part.form for part in found[1:-1]})
        if found[-1].outputs != self._results() or (self.repeat is None and kinds > count // 2):
            raise _NotInLayers
        return self._build(found)

    def _layers(self) -> dict[Node, int]:
        """The number of the layer that a node belongs to, where it does."""
        lists: dict[str, dict[Node, int]] = {}
        for node in self.nodes:
            for path, _ in (node.meta.get("nn_module_stack") or {}).values():
                match = NUMBERED.fullmatch(path)
                if match and self._is_list(match[1]):
                    lists.setdefault(match[1], {})[node] = int(match[2])
                    break
        self.path, most = max(lists.items(), key=lambda each: len(each[1]), default=("", {}))
        numbers = sorted(set(most.values()))
        return {node: numbers.index(number) for node, number in most.items()}

    def _is_list(self, path: str) -> bool:
        try:
            return isinstance(self.module.get_submodule(path), nn.ModuleList)
        except AttributeError:  # a module that was made on the way
            return False

    def _assign(self, layers: dict[Node, int], count: int) -> None:
        """Give every node that is computed at run time its stage."""
        needs: dict[Node, int] = {}
        for node in self.nodes:
            if node.op != "call_function" or self._is_constant(node) or _is_number(node):
                continue
            needs[node] = max((needs[each] for each in node.all_input_nodes if each in needs), default=0)
            if node in layers:
                needs[node] = max(needs[node], layers[node] + 1)
        for node in reversed(needs):
            users = [self.stage[user] for user in node.users if user in self.stage]
            own = layers[node] + 1 if node in layers else count + 1 if needs[node] else 0
            # What our kernels have replaced is of no module any more, and belongs to who uses it.
            is_ours = not node.meta.get("nn_module_stack")
            if is_ours and users:
                own = min(users) if needs[node] else 0
            elif own > count and users and min(users) <= count:
                own = needs[node]
            self.stage[node] = own

    def _is_constant(self, node: Node) -> bool:
        """Whether it is made of weights alone."""
        known = node in self.constants
        if not known and node.op == "call_function" and node.all_input_nodes:
            known = all(each in self.constants for each in node.all_input_nodes)
            if known:
                arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda each: self.constants[each])
                self.constants[node] = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
        return known

    def _hoist(self, count: int) -> None:
        """What several layers look at is computed before all of them, if it can be."""
        for node in list(self.stage):
            own = self.stage[node]
            far = any(self.stage[user] > own + 1 for user in node.users if user in self.stage)
            if 0 < own <= count and far:
                self._to_the_front(node)
        for node, own in self.stage.items():
            if any(self.stage[each] > own for each in node.all_input_nodes if each in self.stage):
                raise _NotInLayers

    def _to_the_front(self, node: Node) -> None:
        if self.stage.get(node, 0) == 0:
            return
        if not _is_plain(node):
            raise _NotInLayers
        self.stage[node] = 0
        for each in node.all_input_nodes:
            self._to_the_front(each)

    def _results(self) -> list[Node]:
        (returned,) = self.nodes[-1].args
        return list(returned)

    def _part(self, nodes: list[Node]) -> _Part:
        inner = {node: at for at, node in enumerate(nodes)}
        inputs: dict[Any, int] = {}

        def place(value: Any) -> tuple[str, int]:
            return "input", inputs.setdefault(value, len(inputs))

        def told(value: Any) -> Any:
            if not isinstance(value, Node):
                return repr(value)
            if value in inner:
                return "inner", inner[value]
            if not _is_number(value):
                return place(value)
            value = self.numbers.get(value, value)
            measured = _measured(value)
            if measured is not None:
                return str(value.target), place((measured,)), repr(value.args[1:])
            return str(value.target), *(told(each) for each in value.args)

        lines = [(str(node.target), _tell(node.args, told), _tell(node.kwargs, told), _shape(node)) for node in nodes]
        stages = {self.stage[node] for node in nodes}
        outputs = [node for node in nodes if any(self.stage.get(user, -1) not in (*stages, -1) for user in node.users)]
        for symbol in sorted(_symbols([*nodes, *_data(inputs)]) - _plain(_data(inputs)), key=str):
            place((self._input_of(symbol),))
        given = [
            (_shape(node), self._is_dense(node) or str(node.meta["val"].stride()), isinstance(key, tuple))
            for key, node in zip(inputs, _data(inputs), strict=True)
        ]
        return _Part(nodes, outputs, inputs, str((lines, [inner[node] for node in outputs], given)))

    def _is_dense(self, node: Node) -> bool:
        """Whether it is handed over without gaps, as parts and weights are, or as the caller has it."""
        return node in self.stage or node in self.constants

    def _input_of(self, symbol: Any) -> Node:
        """An argument of the whole graph that has this size."""
        found = next((node for node in self.inputs if symbol in _plain([node])), None)
        if found is None:
            raise _NotInLayers
        return found

    def _build(self, found: Sequence[_Part]) -> Cut:
        places: dict[Any, int] = {node: self._place(at) for at, node in enumerate(self.inputs)}
        weights: list[Tensor] = []
        total = len(self.inputs) if self.repeat is None else self.repeat.arguments
        given = [self._given(part, 0 < at < len(found) - 1) for at, part in enumerate(found)]
        further = self._further(found)
        for values in [*given[1:-1], *further]:
            for value in values:
                if value not in places and not isinstance(value, _Argument) and (held := self._held(value)) is not None:
                    places[value], total = total, total + 1
                    weights.append(held.contiguous())
        parts: list[GraphModule] = []
        known: dict[str, int] = {}
        calls = []
        for at, part in enumerate(found):
            if part.form not in known:
                known[part.form] = len(parts)
                parts.append(self._module(part, 0 < at < len(found) - 1))
            # Behind the last layers that were traced come those that are as they are.
            for values in [given[at], *(further if at == len(found) - 2 else [])]:
                inputs = [value.place if isinstance(value, _Argument) else places[value] for value in values]
                outputs = list(range(total, total + len(part.outputs)))
                places.update(zip(part.outputs, outputs, strict=True))
                total += len(outputs)
                calls.append(Call(known[part.form], inputs, outputs))
        return Cut(parts, calls, weights, total)

    def _place(self, at: int) -> int:
        return at if self.repeat is None else self.repeat.place(at, 0)

    def _given(self, part: _Part, is_layer: bool) -> list[Any]:
        """What a part is handed; its own weights are in one that is no layer."""
        return _data(key for key in part.inputs if is_layer or key not in self.constants)

    def _held(self, value: Any) -> Tensor | None:
        """A weight of a layer: a node, or one of those of layers that were not traced."""
        if isinstance(value, Node):
            return self.constants[value].detach() if value in self.constants else None
        node, shift = value
        return self._shifted(node, shift)

    def _further(self, found: Sequence[_Part]) -> list[list[Any]]:
        """What those parts of layers are handed that were not traced: nodes and places, and weights that stand so many
        layers behind those of a node."""
        if self.repeat is None:
            return []
        before, last = found[-3:-1]
        if before.form != last.form:
            raise _NotInLayers
        handed = {node: last.outputs[at] for at, node in enumerate(before.outputs)}
        at = {node: place for place, node in enumerate(self.inputs)}
        rows = []
        for copy in range(1, self.repeat.copies + 1):
            shift = copy * self.repeat.together
            row: list[Any] = []
            for one, other in zip(_data(before.inputs), _data(last.inputs), strict=True):
                if other in handed:
                    row.append(handed[other])
                elif one is other:
                    row.append(other)
                elif other in at:
                    row.append(_Argument(self.repeat.place(at[other], shift)))
                elif other in self.constants:
                    row.append((other, shift))
                else:
                    raise _NotInLayers
            rows.append(row)
        return rows

    def _shifted(self, node: Node, shift: int) -> Tensor:
        """A weight, or what is made of weights alone, of so many layers further."""
        if node in self.names:
            number = re.compile(rf"({re.escape(self.path)}\.)(\d+)(\..*)")
            return self.repeat.tensor(  # type: ignore[union-attr]
                number.sub(lambda found: f"{found[1]}{int(found[2]) + shift}{found[3]}", self.names[node])
            )
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda each: self._shifted(each, shift))
        made: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return made

    def _module(self, part: _Part, is_layer: bool) -> GraphModule:
        graph, known, root = Graph(), {}, nn.Module()
        mode = detect_fake_mode([node.meta["val"] for node in self.inputs])
        for key, at in part.inputs.items():
            node = key[0] if isinstance(key, tuple) else key
            if not is_layer and key in self.constants:
                root.register_buffer(f"weight_{at}", self.constants[key].detach())
                known[key] = graph.get_attr(f"weight_{at}")
                continue
            known[key] = graph.placeholder(f"input_{at}")
            value = node.meta["val"]
            # Of its own: an argument that stands there twice would be taken for one.
            like = {"dtype": value.dtype, "device": value.device}
            with mode:  # type: ignore[union-attr]
                if self._is_dense(node):
                    known[key].meta["val"] = torch.empty(value.shape, **like)
                else:
                    known[key].meta["val"] = torch.empty_strided(value.shape, value.stride(), **like)

        def of(value: Node) -> Node:
            value = self.numbers.get(value, value)
            if value in known:
                return known[value]
            measured = _measured(value)
            known[value] = graph.node_copy(value, of if measured is None else lambda _: known[(measured,)])
            known[value].meta["val"] = value.meta["val"]
            return known[value]

        for node in part.nodes:
            for each in node.all_input_nodes:  # in their order, before the node
                of(each)
            known[node] = graph.node_copy(node, of)
        returned = []
        for node in part.outputs:
            result, value = known[node], node.meta["val"]
            if not value.is_contiguous():
                result = graph.call_function(torch.ops.aten.clone.default, (result,), DENSE)
                result.meta["val"] = torch.ops.aten.clone.default(value, **DENSE)
            returned.append(result)
        graph.output(tuple(returned))
        return GraphModule(root, graph)


def _is_number(node: Node) -> bool:
    """Whether it is a size and no tensor, nor several."""
    return isinstance(node.meta.get("val"), int | torch.SymInt | torch.SymBool)


def _measured(size: Node) -> Node | None:
    """The tensor that a size is one of; None where it is made of other sizes."""
    first = next(iter(size.all_input_nodes), None)
    return None if first is None or _is_number(first) else first


def _is_plain(node: Node) -> bool:
    """Whether it multiplies nothing large and writes over nothing that anybody else reads."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    written = node.args[0] if target._schema.is_mutable else None
    alone = not isinstance(written, Node) or (written.op == "call_function" and len(written.users) == 1)
    return target.namespace != "bild" and alone


def _expression(node: Node) -> Any:
    return node.meta["val"].node.expr


def _data(inputs: Iterable[Any]) -> list[Node]:
    """The tensors of a part's inputs."""
    return [key[0] if isinstance(key, tuple) else key for key in inputs]


def _values(node: Node) -> Sequence[Any]:
    """What a node computes, which may be several tensors."""
    values = node.meta.get("val")
    return values if isinstance(values, list | tuple) else [values]


def _symbols(nodes: Iterable[Node]) -> set[Any]:
    """What the sizes of these are made of."""
    values = [each for node in nodes for each in _values(node)]
    sizes = [size for each in values for size in (each.shape if isinstance(each, Tensor) else [each])]
    return {symbol for size in sizes if isinstance(size, torch.SymInt) for symbol in size.node.expr.free_symbols}


def _plain(nodes: Iterable[Node]) -> set[Any]:
    """The symbols that are a dimension of one of these."""
    sizes = [size for node in nodes for size in node.meta["val"].shape if isinstance(size, torch.SymInt)]
    return {size.node.expr for size in sizes if size.node.expr.is_symbol}


def _shape(node: Node) -> Any:
    values = _values(node)
    return [(str(each.dtype), str(tuple(each.shape))) if isinstance(each, Tensor) else str(each) for each in values]


def _tell(value: Any, told: Any) -> Any:
    """Arguments in a form that can be compared."""
    if isinstance(value, list | tuple):
        return tuple(_tell(each, told) for each in value)
    if isinstance(value, dict):
        return tuple((key, _tell(each, told)) for key, each in sorted(value.items()))
    return told(value)
