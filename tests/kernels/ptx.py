"""Runs the PTX of a compiled kernel on a CPU, all threads of a block in step: what Triton's interpreter leaves out.

Triton's interpreter runs no inline assembly. This one knows the instructions that our kernels compile to, and refuses
others by name. Branches must be the same for all threads, as those of our kernels are.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

Lanes = np.ndarray[Any, Any]
_SIZES = {"b8": 1, "b16": 2, "b32": 4, "b64": 8}
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_SHARED = 1 << 16  # where the block's shared memory begins, so that an address of 0 is an error


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: torch.Tensor | int | float, warps: int, **constants: Any
) -> None:
    """Compiles a kernel of Triton for an H100, as a launch with these arguments would, and runs all of its blocks.

    Args:
        kernel: The function with `@triton.jit`.
        grid: Blocks in each of up to three dimensions.
        arguments: Those that are no constants, in order. Tensors are read and written.
        warps: Of a block.
        constants: The constants by name.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    named = dict(zip((name for name in kernel.arg_names if name not in constants), arguments, strict=True))
    constants |= {name: value for name, value in named.items() if isinstance(value, int) and value == 1}
    types = {name: "constexpr" if name in constants else _type(named[name]) for name in kernel.arg_names}
    places = {(place,): constants[name] for place, name in enumerate(kernel.arg_names) if name in constants}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, name in enumerate(kernel.arg_names):
        value = named.get(name, 0.5)
        if name not in constants and (isinstance(value, torch.Tensor) or value % 16 == 0):
            aligned[place,] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=types, constexprs=places, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert compiled.asm["cubin"]
    given = [value for name, value in named.items() if name not in constants]
    _run(compiled.asm["ptx"], given, grid, 32 * warps)


def _type(value: torch.Tensor | int | float) -> str:
    if isinstance(value, torch.Tensor):
        names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
        name = str(value.dtype).removeprefix("torch.")
        return "*" + names.get(name, name.replace("uint", "u").replace("int", "i"))
    return "i32" if isinstance(value, int) else "fp32"


def _run(ptx: str, arguments: Sequence[torch.Tensor | int | float], grid: tuple[int, ...], threads: int) -> None:
    program = _Program(ptx)
    memory = _Memory()
    values = [memory.add(one) if isinstance(one, torch.Tensor) else one for one in arguments]
    for block in itertools.product(*(range(size) for size in reversed(grid))):
        _Block(program, memory, values, tuple(reversed(block)), threads).run()
    memory.write_back()


class _Program:
    def __init__(self, ptx: str) -> None:
        ptx = re.sub(r"//.*", "", ptx)
        body = ptx[ptx.index("{", ptx.index(".entry")) :]
        body = body[: re.search(r"^\}", body, re.MULTILINE).end()]  # type: ignore[union-attr]
        body = re.sub(r"^\s*\.loc.*$", "", body, flags=re.MULTILINE)
        self.parameters = re.findall(r"\.param\s.*?(\w+_param_\d+)", ptx)
        self.labels: dict[str, int] = {}
        self.statements: list[tuple[str, str, str, list[str]]] = []
        self.shared: dict[str, int] = {}
        self.shared_bytes = 1 << 16  # of `global_smem`, whose size is Triton's to say
        for name in re.findall(r"\.extern \.shared .*?(\w+)\[\]", ptx):
            self.shared[name] = 0
        for statement in map(str.strip, body.split(";")):
            while found := re.match(r"(?:(\$\w+):|[{}])\s*", statement):
                self.labels[found[1]] = len(self.statements)
                statement = statement[found.end() :]
            if found := re.match(r"\.shared .*?\.b8 (\w+)\[(\d+)\]", statement):
                self.shared[found[1]] = self.shared_bytes
                self.shared_bytes += int(found[2])
            elif statement and not statement.startswith((".reg", ".pragma")):
                match = _STATEMENT.fullmatch(statement)
                assert match, f"not understood: {statement}"
                negated, guard, name, rest = match.groups()
                self.statements.append((negated or "", guard or "", name, _OPERAND.findall(rest)))


class _Memory:
    def __init__(self) -> None:
        self._tensors: list[tuple[int, torch.Tensor, Lanes]] = []
        self._next = 1 << 32

    def add(self, tensor: torch.Tensor) -> int:
        base, self._next = self._next, self._next + (1 << 32)
        self._tensors.append(
            (base, tensor, np.frombuffer(tensor.contiguous().view(torch.uint8).numpy().tobytes(), np.uint8).copy())
        )
        return base

    def at(self, address: int) -> tuple[Lanes, int]:
        base, _, data = self._tensors[(address >> 32) - 1]
        return data, address - base

    def write_back(self) -> None:
        for _, tensor, data in self._tensors:
            tensor.view(torch.uint8).copy_(torch.from_numpy(data).view(tensor.view(torch.uint8).shape))


class _Block:
    def __init__(
        self, program: _Program, memory: _Memory, values: Sequence[Any], block: tuple[int, ...], threads: int
    ) -> None:
        self.program, self.memory, self.threads = program, memory, threads
        self.registers: dict[str, Lanes] = {}
        self.parameters = dict(zip(program.parameters, [*values, 0, 0], strict=False))
        self.shared = np.zeros(program.shared_bytes, np.uint8)
        lane = np.arange(threads, dtype=np.uint32)
        block = (*block, 0, 0)
        self.special = {"%tid.x": lane, "%laneid": lane % 32}
        for axis, place in zip("xyz", block, strict=False):
            self.special[f"%ctaid.{axis}"] = np.full(threads, place, np.uint32)

    def run(self) -> None:
        place = 0
        while place < len(self.program.statements):
            negated, guard, name, operands = self.program.statements[place]
            place += 1
            active = np.ones(self.threads, bool)
            if guard:
                active = self.registers[guard] ^ bool(negated)
            if name == "ret":
                assert active.all()
                return
            if name.split(".")[0] == "bra":
                assert active.all() or not active.any(), "threads of a block branch differently"
                if active.all():
                    place = self.program.labels[operands[0]]
                continue
            if not name.startswith(("bar.", "barrier.")):
                self._execute(name.split("."), operands, active)

    # operands

    def _read(self, operand: str, kind: str) -> Lanes:
        """The lanes of an operand as numbers of a type of PTX, such as "s32"."""
        operand = operand.strip()
        dtype = _dtype(kind)
        if operand in self.special:
            return self.special[operand].astype(dtype)
        if operand in self.program.shared:
            return np.full(self.threads, _SHARED + self.program.shared[operand]).astype(dtype)
        if re.fullmatch(r"0f[0-9A-Fa-f]{8}", operand):
            return np.full(self.threads, int(operand[2:], 16), np.uint32).view(np.float32)
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|[0-9]+)U?", operand):
            number = int(operand.rstrip("U"), 0) & ((1 << 8 * dtype.itemsize) - 1)
            return np.full(self.threads, number, f"u{dtype.itemsize}").view(dtype)
        bits = self.registers[operand]
        if kind == "pred":
            return bits
        assert bits.dtype.itemsize >= dtype.itemsize, (operand, kind)
        return bits.astype(f"u{dtype.itemsize}").view(dtype)

    def _write(self, operand: str, values: Lanes, active: Lanes) -> None:
        bits = values if values.dtype == bool else values.view(f"u{values.dtype.itemsize}")
        old = self.registers.get(operand)
        if active.all() or old is None or old.dtype != bits.dtype:
            old = np.zeros_like(bits) if old is None or old.dtype != bits.dtype else old
        self.registers[operand] = np.where(active, bits, old)

    # instructions

    def _execute(self, name: list[str], operands: list[str], active: Lanes) -> None:
        with np.errstate(all="ignore"):
            if name[0] in ("ld", "st"):
                self._move_memory(name, operands, active)
            elif name[0] in ("ldmatrix", "stmatrix"):
                self._move_matrix(name, operands, active)
            elif name[0] == "mov" and "{" in operands[0] + operands[1]:
                self._move_parts(operands, active)
            else:
                target = operands[0].split("|")[0]
                if name[0] in ("setp", "selp", "cvt", "shfl", "redux", "dp4a", "fma"):
                    found = getattr(self, "_" + name[0])(name, operands[1:])
                else:
                    found = self._computed(name, operands[1:])
                self._write(target, found, active)

    def _computed(self, name: list[str], operands: list[str]) -> Lanes:
        if name[0] not in _OPERATIONS:
            raise NotImplementedError(f"{'.'.join(name)} is no instruction that this interpreter knows")
        operation, kind = _OPERATIONS[name[0]], name[-1]
        if kind.endswith("x2"):  # two numbers of 16 bits
            return operation(*(self._read(one, "b32").view(_dtype(kind[:-2])) for one in operands)).view(np.uint32)
        if name[0] in ("shl", "shr"):
            return operation(self._read(operands[0], kind), self._read(operands[1], "u32")).astype(_dtype(kind))
        if name[1] not in ("wide", "hi"):
            return operation(*(self._read(one, kind) for one in operands)).astype(_dtype(kind))
        wide = f"{kind[0]}64"
        factors = [self._read(one, kind).astype(_dtype(wide)) for one in operands[:2]]
        found = operation(*factors, *(self._read(one, wide) for one in operands[2:]))
        return (found >> 32).astype(_dtype(kind)) if name[1] == "hi" else found

    def _fma(self, name: list[str], operands: list[str]) -> Lanes:
        """One rounding: in float64 a product of two fp32 is exact, and the sum nearly so."""
        kind, width = (np.float16, "b32") if name[-1] == "f16x2" else (np.float32, "f32")
        a, b, c = (self._read(one, width).view(kind).astype(np.float64) for one in operands)
        return (a * b + c).astype(kind).view(np.uint32)

    def _setp(self, name: list[str], operands: list[str]) -> Lanes:
        return _COMPARISONS[name[1]](*(self._read(one, name[-1]) for one in operands))

    def _selp(self, name: list[str], operands: list[str]) -> Lanes:
        a, b = (self._read(one, name[-1]) for one in operands[:2])
        return np.where(self._read(operands[2], "pred"), a, b)

    def _dp4a(self, _: list[str], operands: list[str]) -> Lanes:
        a, b = (self._read(one, "b32").view(np.int8).reshape(-1, 4).astype(np.int32) for one in operands[:2])
        return (a * b).sum(1).astype(np.int32) + self._read(operands[2], "s32")

    def _shfl(self, name: list[str], operands: list[str]) -> Lanes:
        lane, other = np.arange(self.threads), self._read(operands[1], "s32")
        source = {"idx": other & 31, "bfly": (lane % 32) ^ other}[name[2]] + lane // 32 * 32
        return self._read(operands[0], "b32")[source]

    def _redux(self, name: list[str], operands: list[str]) -> Lanes:
        assert name[2] == "add"
        return self._read(operands[0], name[-1]).reshape(-1, 32).sum(1, dtype=_dtype(name[-1])).repeat(32)

    def _cvt(self, name: list[str], operands: list[str]) -> Lanes:
        to, source = name[-2:]
        if to in ("bf16x2", "f16x2"):
            high, low = (self._cvt([to[:-2], source], [one]) for one in operands)
            return (high.view(np.uint16).astype(np.uint32) << 16) | low.view(np.uint16)
        if to == "bf16":
            return torch.from_numpy(self._read(operands[0], source).copy()).bfloat16().view(torch.int16).numpy()
        if source == "bf16":
            return (self._read(operands[0], "b16").astype(np.uint32) << 16).view(np.float32)
        return self._read(operands[0], source).astype(_dtype(to))

    def _move_matrix(self, name: list[str], operands: list[str], active: Lanes) -> None:
        """Matrices of 8 x 8 halves, whose rows are where 8 lanes each say; each lane has two elements of each."""
        load = name[0] == "ldmatrix"
        registers, rows = operands if load else reversed(operands)
        lanes = np.arange(self.threads)
        addresses = self._read(rows.strip("[] "), "u32")
        for place, register in enumerate(re.findall(r"[%\w.]+", registers)):
            row = lanes // 32 * 32 + 8 * place + lanes % 32 // 4
            self.registers["matrix"] = addresses[row] + (4 * (lanes % 4)).astype(np.uint32)
            parts = [register, "[matrix]"]
            self._move_memory(["ld" if load else "st", "shared", "b32"], parts if load else parts[::-1], active)

    def _move_memory(self, name: list[str], operands: list[str], active: Lanes) -> None:
        width = _SIZES[re.sub(r"[suf](\d+)", r"b\1", name[-1])]
        target, address = operands if name[0] == "ld" else reversed(operands)
        registers = re.findall(r"[%\w.]+", target)
        found = re.fullmatch(r"\[\s*([%\w.]+)\s*(?:\+\s*(-?\d+))?\s*\]", address.strip())
        assert found, address
        if name[1] == "param":
            value = self.parameters[found[1]]
            bits = np.array([value], np.float32 if isinstance(value, float) else np.int64)
            self._write(
                registers[0], np.repeat(bits.view(f"u{bits.itemsize}").astype(f"u{width}"), self.threads), active
            )
            return
        shared = name[1] == "shared"
        addresses = self._read(found[1], "u32" if shared else "u64").astype(np.int64) + int(found[2] or 0)
        for place, register in enumerate(registers):
            values = np.zeros(self.threads, f"u{width}")
            given = self._read(register, f"b{8 * width}") if name[0] == "st" else values
            for lane in np.flatnonzero(active):
                at = int(addresses[lane]) + place * width
                data, offset = (self.shared, at - _SHARED) if shared else self.memory.at(at)
                assert 0 <= offset <= len(data) - width, (
                    f"an access outside of memory: {name} {operands}, thread {lane}, byte {offset} of {len(data)}"
                )
                assert offset % (width * len(registers)) == place * width, (
                    f"an access that is not aligned: {name} {operands}, thread {lane}, byte {offset}"
                )
                if name[0] == "ld":
                    values[lane] = data[offset : offset + width].view(f"u{width}")[0]
                else:
                    data[offset : offset + width] = given[lane : lane + 1].view(np.uint8)
            if name[0] == "ld":
                # A register is wider than a byte; its upper bits are zeros, or the sign.
                signed, size = name[-1].startswith("s"), max(width, 2 if register.startswith("%rs") else width)
                size = max(size, 4 if register.startswith("%r") and register[2].isdigit() else size)
                self._write(
                    register,
                    values.view(f"{'i' if signed else 'u'}{width}").astype(f"{'i' if signed else 'u'}{size}"),
                    active,
                )

    def _move_parts(self, operands: list[str], active: Lanes) -> None:
        parts, whole = operands if "{" in operands[0] else reversed(operands)
        names = re.findall(r"[%\w.]+", parts)
        if "{" in operands[0]:
            bits = self.registers[whole.strip()]
            split = bits.view(f"u{bits.itemsize // len(names)}").reshape(-1, len(names))
            for register, column in zip(names, split.T, strict=True):
                self._write(register, column.copy(), active)
        else:
            columns = np.stack([self.registers[one] for one in names], axis=1)
            self._write(
                whole.strip(), np.ascontiguousarray(columns).view(f"u{columns.itemsize * len(names)}")[:, 0], active
            )


def _dtype(kind: str) -> np.dtype[Any]:
    if kind == "pred":
        return np.dtype(bool)
    return np.dtype({"b": "u", "u": "u", "s": "i", "f": "f"}[kind[0]] + str(int(kind[1:]) // 8))


def _prmt(a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    pool = np.concatenate([x.astype("<u4").view(np.uint8).reshape(-1, 4) for x in (a, b)], axis=1)
    found = np.zeros((len(a), 4), np.uint8)
    for place in range(4):
        chosen = (selector >> np.uint32(4 * place)) & np.uint32(15)
        byte = pool[np.arange(len(a)), chosen & 7]
        found[:, place] = np.where(chosen & 8, np.where(byte & 128, 255, 0), byte)
    return found.view(np.uint32)[:, 0]


def _shl(a: Lanes, count: Lanes) -> Lanes:
    return np.where(count >= 8 * a.itemsize, 0, a << _kept(a, count))


def _shr(a: Lanes, count: Lanes) -> Lanes:
    return np.where((count >= 8 * a.itemsize) & (a.dtype.kind == "u"), 0, a >> _kept(a, count))


def _kept(a: Lanes, count: Lanes) -> Lanes:
    return np.minimum(count, 8 * a.itemsize - 1).astype(a.dtype)


_COMPARISONS: dict[str, Callable[[Lanes, Lanes], Lanes]] = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
_OPERATIONS: dict[str, Callable[..., Lanes]] = {
    "mov": lambda a: a,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "mad": lambda a, b, c: a * b + c,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "shl": _shl,
    "shr": _shr,
    "bfe": lambda a, start, count: (a >> start) & ((1 << count) - 1).astype(a.dtype),
    "prmt": _prmt,
}
