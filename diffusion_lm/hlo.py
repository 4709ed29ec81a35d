"""Bytes that a compiled program moves in memory and between devices, read from its text: XLA's own
account counts a loop once, and no talk."""

import math
import re
from typing import NamedTuple

SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
SIZES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
# What moves nothing itself: names of values, and the second half of what is asynchronous.
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
)
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


class _Instruction(NamedTuple):
    name: str
    opcode: str
    size: float  # bytes of its result in main memory
    slice: float  # bytes of the second array of its result, wherever it lies
    whole: float  # bytes of its result, wherever it lies
    tuple: bool  # whether its result is one
    operands: list[str]
    rest: str  # operands and attributes as text
    root: bool


def bytes_moved(text: str) -> float:
    """Bytes of operands and results of all instructions of an HLO module, bodies of loops as often
    as they run; of what is only sliced, gathered from or updated, the part that is touched."""
    computations, entry = _parse(text)
    return _of(entry, computations)


def bytes_received(text: str) -> float:
    """Bytes that each device has to get from others in one run of an HLO module, bodies of loops as
    often as they run: of what n devices gather, reduce or exchange the (n - 1) / n that are not its
    own, of what is reduced for all of them twice that. What TPUs' compiler repeats along a chain of
    other work counts once."""
    computations, entry = _parse(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1

    def visit(name: str, times: int) -> dict:
        """Bytes by collective."""
        found = {}
        for i in computations[name]:
            inner = {}
            kind = i.opcode.removesuffix("-start")
            if i.opcode == "while":
                called = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", i.rest))
                trips = _trips(i.rest, computations[called["condition"]])
                inner = visit(called["body"], times * trips)
            elif i.opcode in ("call", "fusion", "async-start"):
                inner = visit(re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", i.rest)[1], times)
            elif i.opcode == "conditional":
                branches = [visit(branch, times) for branch in _branches(i.rest)]
                inner = max(branches, key=lambda branch: sum(branch.values()))
            elif kind in COLLECTIVES:
                chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', i.rest)
                size = _received(kind, i, _group(i.rest, devices), "reduce-scatter" in name)
                inner = {chain.groups() if chain else (name, i.name): times * size}
            found |= {key: max(size, found.get(key, 0)) for key, size in inner.items()}
        return found

    return sum(visit(entry, 1).values())


def _received(kind: str, i: _Instruction, n: int, scatters: bool) -> float:
    """Bytes of one run of a collective of n devices; `scatters` of an all-reduce of which each
    keeps a part."""
    size, started = i.whole, i.opcode.endswith("-start")
    if kind == "collective-permute":
        return size / 2 if started else size  # a start's result has its operand, too
    if kind in ("all-gather", "reduce-scatter") and started:
        size *= n / (n + 1)  # of operand and result the one that is n times the other
    elif kind == "reduce-scatter":
        size *= n
    elif kind == "all-reduce" and not scatters:
        size *= 2
    return size * (n - 1) / n


def _group(rest: str, devices: int) -> int:
    """How many devices take part in one group of a collective."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return devices


def _branches(rest: str) -> list[str]:
    names = re.findall(r"(?:true_computation|false_computation)=%?([\w.\-]+)", rest)
    listed = re.search(r"branch_computations=\{([^}]*)\}", rest)
    return names + (_NAME.findall(listed[1]) if listed else [])


def _parse(text: str):
    """({computation: its instructions}, the entry's name)."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and "(" in line:
            found = _NAME.search(line) or re.match(r"(?:ENTRY )?([\w.\-]+)", line)
            current = computations.setdefault(found[1], [])
            entry = found[1] if line.startswith("ENTRY") else entry
        elif line == "}":
            current = None
        elif current is not None and line.startswith(" "):
            current.append(line)
        elif current:  # kernels have attributes of several lines
            current[-1] += line
    for name, lines in computations.items():
        computations[name] = [_instruction(line) for line in lines if " = " in line]
    return computations, entry


def _instruction(line: str) -> _Instruction:
    left, _, right = line.strip().partition(" = ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].strip()
    opcode, _, rest = rest.partition("(")
    inside = rest[: _closing("(" + rest, 0) - 1]
    return _Instruction(
        left.removeprefix("ROOT ").removeprefix("%"),
        opcode,
        _size(shape),
        _bytes(*(_ARRAY.findall(shape) * 2)[1][:2]) if "[" in shape else 0,
        sum(_bytes(kind, dims) for kind, dims, _ in _ARRAY.findall(shape)),
        shape.startswith("("),
        _NAME.findall(inside),
        rest,
        left.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    return len(text) - 1


def _size(shape: str) -> float:
    """Bytes in main memory; arrays in a space of their own, S(n), lie on the chip."""
    return sum(
        _bytes(kind, dims) for kind, dims, layout in _ARRAY.findall(shape) if "S(" not in layout
    )


def _bytes(kind: str, dims: str) -> float:
    return SIZES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)


def _of(name: str, computations: dict) -> float:
    """Bytes that one run of a computation moves."""
    mine, total = computations[name], 0.0
    sizes = {i.name: i.size for i in mine}
    for i in mine:
        called = dict(re.findall(r"(condition|body|calls|to_apply)=%?([\w.\-]+)", i.rest))
        if i.opcode in FREE or i.opcode.endswith(("-done", "-update")):
            continue
        if i.opcode == "while":
            times = _trips(i.rest, computations[called["condition"]])
            total += times * _of(called["body"], computations)
        elif i.opcode == "conditional":
            total += max(_of(n, computations) for n in _branches(i.rest))
        elif i.opcode == "call":
            total += _of(called["to_apply"], computations)
        elif i.opcode == "async-start":
            total += _of(called["calls"], computations)
        elif i.opcode == "fusion":
            total += _of_fusion(i, computations[called["calls"]], sizes)
        elif i.opcode == "copy-start":  # of its result, the source is a part
            total += i.size
        elif i.opcode == "slice-start":
            total += i.slice
        elif i.opcode.endswith("-start") and i.tuple:  # of operands and results
            total += i.size
        elif i.opcode in ("dynamic-slice", "slice", "gather"):
            total += 2 * i.size
        elif i.opcode == "dynamic-update-slice":
            total += 2 * sizes.get(i.operands[1], 0)
        else:
            total += i.size + sum(sizes.get(o, 0) for o in i.operands)
    return total


def _of_fusion(i: _Instruction, inside: list[_Instruction], sizes: dict) -> float:
    """Its result and operands; one of which only slices are read, or that is updated in place,
    counts with these."""
    total = i.size
    within = {j.name: j.size for j in inside}
    for j in inside:
        if j.opcode != "parameter":
            continue
        users = [k for k in inside if j.name in k.operands]
        whole = sizes.get(i.operands[int(j.rest.split(")")[0])], j.size)
        if users and all(k.opcode in ("dynamic-slice", "slice", "gather") for k in users):
            total += sum(k.size for k in users)
        elif users and all(
            k.opcode == "dynamic-update-slice" and k.operands[0] == j.name for k in users
        ):
            update = sum(within.get(k.operands[1], 0) for k in users)
            total += 2 * update - sum(k.size for k in users)  # the result is not written whole
        else:
            total += whole
    return total


def _trips(rest: str, condition: list[_Instruction]) -> int:
    known = re.search(r"known_trip_count[^\d]*(\d+)", rest)
    if known:
        return int(known[1])
    limits = [
        int(found[1])
        for i in condition
        if i.opcode == "constant" and (found := re.match(r"(\d+)\)", i.rest))
    ]
    return max(limits, default=1)
