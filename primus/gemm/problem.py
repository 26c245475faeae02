"""One matrix multiplication, D = alpha op(A) op(B) + beta C, in BLAS column-major terms.

torch is row-major: its `out = a @ b` is the column-major product of the transposes, so that BLAS A
is torch's `b`, BLAS B is torch's `a`, m counts the columns of `out` and n its rows.

The fields hold all that hipBLASLt's bench line says about a problem; how a benchmark runs it
(rotating, iterations, solution index) is not part of the problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from primus.errors import ArtifactError
from primus.files import canonical_json, sha256_text

if TYPE_CHECKING:
    from torch import Tensor

TYPE_OF_DTYPE = {
    "torch.float64": "f64_r",
    "torch.float32": "f32_r",
    "torch.float16": "f16_r",
    "torch.bfloat16": "bf16_r",
    "torch.float8_e4m3fn": "f8_r",
    "torch.float8_e5m2": "bf8_r",
    "torch.float8_e4m3fnuz": "f8_fnuz_r",
    "torch.float8_e5m2fnuz": "bf8_fnuz_r",
    "torch.int8": "i8_r",
    "torch.int32": "i32_r",
}
BYTES_OF_TYPE = {
    "f64_r": 8,
    "f32_r": 4,
    "i32_r": 4,
    "f16_r": 2,
    "bf16_r": 2,
    "f8_r": 1,
    "bf8_r": 1,
    "f8_fnuz_r": 1,
    "bf8_fnuz_r": 1,
    "i8_r": 1,
    "f6_r": 0.75,
    "bf6_r": 0.75,
    "f4_r": 0.5,
}
# Old releases of hipBLASLt name the scale modes, later ones number them.
_MODES = {"s": "1", "v": "2"}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Group:
    """The sizes of one further member of a grouped GEMM; the first stands in the problem."""

    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldc: int
    ldd: int
    lde: int = 0
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0
    stride_d: int = 0
    stride_e: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A GEMM problem; equal problems have equal kernels.

    Attributes:
        m, n, k: op(A) is m x k, op(B) is k x n, D is m x n.
        transA, transB: "N", "T" or "C".
        lda, ldb, ldc, ldd, lde: leading dimensions in elements; 0 becomes the packed one
            (lde, of the auxiliary output, stays).
        stride_a … stride_e: elements between the matrices of a batch; 0 with a batch of one.
        a_type … aux_type: hipBLASLt's names ("bf16_r"); empty ones become a_type, c and d's
            become d_type; bias_type and aux_type stay as they are.
        compute_type, scale_type: of the accumulation and of alpha and beta.
        alpha, beta: real parts; alphai, betai are the imaginary ones of complex types.
        batch_mode: hipBLASLt's number; 0 is one stride between the matrices of a batch.
        scaleA … scaleD: scale modes by number ("0": none, "1": scalar, "2": vector, "3" and on:
            blocks); the names "s" and "v" of old releases become numbers.
        bias_source: which operand the bias gradient is taken from.
        fast_accumulation: cuBLASLt's flag for fp8; hipBLASLt has none.
        bias_stride: elements between the biases of a batch.
        activation_type, activation_args: epilogue function and its parameters.
        groups: the further members of a grouped GEMM, which grouped_gemm then says too.
    """

    m: int
    n: int
    k: int
    transA: str = "N"
    transB: str = "N"
    batch_count: int = 1
    batch_mode: int = 0
    lda: int = 0
    ldb: int = 0
    ldc: int = 0
    ldd: int = 0
    lde: int = 0
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0
    stride_d: int = 0
    stride_e: int = 0
    alpha: float = 1.0
    alphai: float = 0.0
    beta: float = 0.0
    betai: float = 0.0
    a_type: str = "f32_r"
    b_type: str = ""
    c_type: str = ""
    d_type: str = ""
    compute_type: str = "f32_r"
    scale_type: str = "f32_r"
    bias_vector: bool = False
    bias_source: str = ""
    bias_type: str = ""
    bias_stride: int = 0
    activation_type: str = "none"
    activation_args: tuple[float, ...] = ()
    gradient: bool = False
    use_e: bool = False
    aux_type: str = ""
    scaleA: str = "0"
    scaleB: str = "0"
    scaleC: str = "0"
    scaleD: str = "0"
    scaleAlpha_vector: bool = False
    amaxD: bool = False
    fast_accumulation: bool = False
    swizzleA: bool = False
    swizzleB: bool = False
    any_stride: bool = False
    grouped_gemm: bool = False
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        if min(self.m, self.n, self.k, self.batch_count) < 1:
            raise ValueError(
                f"a GEMM has sizes of at least 1, not m={self.m} n={self.n} k={self.k} "
                f"batch_count={self.batch_count}"
            )
        derived = {
            "lda": self.m if self.transA == "N" else self.k,
            "ldb": self.k if self.transB == "N" else self.n,
            "ldc": self.m,
            "ldd": self.m,
            "b_type": self.a_type,
            "d_type": self.a_type,
        }
        for name, value in derived.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if not self.c_type:
            object.__setattr__(self, "c_type", self.d_type)
        if self.groups:
            object.__setattr__(self, "grouped_gemm", True)
        for name in ("scaleA", "scaleB", "scaleC", "scaleD"):
            object.__setattr__(self, name, _MODES.get(getattr(self, name), getattr(self, name)))
        # -0.0 equals 0.0 but is written differently.
        for name in ("alpha", "alphai", "beta", "betai"):
            object.__setattr__(self, name, getattr(self, name) + 0.0)
        arguments = tuple(value + 0.0 for value in self.activation_args)
        object.__setattr__(self, "activation_args", arguments)

    @property
    def flops(self) -> int:
        """Floating point operations of one call: two per multiply-add."""
        members = ((self.m, self.n, self.k), *((g.m, g.n, g.k) for g in self.groups))
        return 2 * self.batch_count * sum(m * n * k for m, n, k in members)

    @property
    def bytes(self) -> int:
        """Bytes that one call has to move: A, B and D once, C when beta is not 0."""
        members = ((self.m, self.n, self.k), *((g.m, g.n, g.k) for g in self.groups))
        total = 0.0
        for m, n, k in members:
            total += m * k * _size(self.a_type) + k * n * _size(self.b_type)
            total += m * n * (_size(self.d_type) + (_size(self.c_type) if self.beta else 0))
        return int(self.batch_count * total)

    def to_json(self) -> dict[str, Any]:
        """Plain values; fields that hold their default are left out."""
        full = asdict(self)
        packed = Problem(
            m=self.m, n=self.n, k=self.k, transA=self.transA, transB=self.transB, a_type=self.a_type
        )
        keep = {"m", "n", "k", "transA", "transB", "a_type"}
        base = asdict(packed)
        if self.d_type != self.a_type:
            base["c_type"] = self.d_type
        values = {name: v for name, v in full.items() if name in keep or v != base[name]}
        if "groups" in values:
            values["groups"] = [dict(group) for group in values["groups"]]
        if "activation_args" in values:
            values["activation_args"] = list(values["activation_args"])
        return values

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The problem that `to_json` wrote.

        Raises:
            ArtifactError: a field is unknown, missing or of the wrong type.
        """
        values = dict(content)
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(values.keys() - known.keys())
        missing = sorted(
            name for name, field in known.items() if field.default is MISSING and name not in values
        )
        if unknown or missing:
            raise ArtifactError(f"GEMM problem: unknown fields {unknown}, missing fields {missing}")
        for name in values.keys() - {"groups", "activation_args"}:
            wanted = str(known[name].type)
            if type(values[name]).__name__ != wanted:
                raise ArtifactError(
                    f"GEMM problem: {name} = {values[name]!r}: wanted a value of type {wanted}"
                )
        try:
            values["groups"] = tuple(Group(**group) for group in values.get("groups", ()))
            values["activation_args"] = tuple(values.get("activation_args", ()))
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"GEMM problem: {error}") from error

    @property
    def key(self) -> str:
        """Hex digits that name the problem's file in the store."""
        return sha256_text(canonical_json(self.to_json()))[:20]

    def sort_key(self) -> tuple[int, int, int, str]:
        """Largest first; ties by sizes, then by every other field."""
        return (-self.flops, self.m, self.n, canonical_json(self.to_json()))

    def __str__(self) -> str:
        """One line that tells the problem from every other: `TN 512x1024x128 bf16_r beta=1.0`."""
        rest = self.to_json()
        layout = f"{rest.pop('transA')}{rest.pop('transB')}"
        sizes = "x".join(str(rest.pop(name)) for name in ("m", "n", "k"))
        head = [layout, sizes, rest.pop("a_type")]
        return " ".join(head + [f"{name}={_plain(value)}" for name, value in rest.items()])

    @classmethod
    def from_mm(cls, a: Tensor, b: Tensor, out: Tensor | None = None) -> Self:
        """The problem of `torch.mm(a, b)` or `torch.bmm(a, b)`.

        Args:
            a, b: [M, K] and [K, N], or [batch, M, K] and [batch, K, N]; any strides. Operands
                that no BLAS can read in place count as the packed copy that torch makes of them.
            out: the result, where its dtype or layout is not that of a fresh `a @ b`.
        """
        return cls(**_operands(a, b, out))

    @classmethod
    def from_addmm(
        cls,
        c: Tensor,
        a: Tensor,
        b: Tensor,
        *,
        beta: float = 1.0,
        alpha: float = 1.0,
        out: Tensor | None = None,
    ) -> Self:
        """The problem of `torch.addmm(c, a, b)` or `torch.baddbmm`, also in place (`out=c`).

        A `c` of one row of N values, added as it is (beta = 1), is a bias.
        """
        values = _operands(a, b, out)
        values["alpha"] = float(alpha)
        columns = b.shape[-1]
        if out is not None and c.shape == out.shape and _layout(out)[0] == "T":
            c = c.mT
        if beta == 1 and c.dim() <= 1 and c.numel() == columns:
            return cls(**values, bias_vector=True, bias_type=_type(c))
        full = c.dim() >= 2 and c.numel() == values["m"] * values["n"] * values["batch_count"]
        _, values["ldc"], values["stride_c"] = _layout(c) if full else ("N", columns, 0)
        return cls(**values, beta=float(beta), c_type=_type(c))


def _operands(a: Tensor, b: Tensor, out: Tensor | None) -> dict[str, Any]:
    if out is not None and _layout(out)[0] == "T":
        # BLAS knows no transposed D: the product of the transposes is what torch calls then.
        a, b, out = b.mT, a.mT, out.mT
    trans_a, lda, stride_a = _layout(b)
    trans_b, ldb, stride_b = _layout(a)
    m, n = int(b.shape[-1]), int(a.shape[-2])
    batch_count = int(a.shape[0]) if a.dim() == 3 else 1
    packed = m * n if batch_count > 1 else 0
    ldd, stride_d = (m, packed) if out is None else _layout(out)[1:]
    wide = "f64_r" if _type(a) == "f64_r" else "f32_r"
    return {
        "m": m,
        "n": n,
        "k": int(a.shape[-1]),
        "transA": trans_a,
        "transB": trans_b,
        "batch_count": batch_count,
        "lda": lda,
        "ldb": ldb,
        "ldc": ldd,
        "ldd": ldd,
        "stride_a": stride_a,
        "stride_b": stride_b,
        "stride_c": stride_d,
        "stride_d": stride_d,
        "a_type": _type(b),
        "b_type": _type(a),
        "d_type": _type(a if out is None else out),
        "compute_type": wide,
        "scale_type": wide,
    }


def _layout(matrix: Tensor) -> tuple[str, int, int]:
    """Transposition, leading dimension and batch stride of a row-major view in BLAS terms."""
    rows, columns = (int(size) for size in matrix.shape[-2:])
    down, right = (int(step) for step in matrix.stride()[-2:])
    batched = matrix.dim() == 3 and matrix.shape[0] > 1
    stride = int(matrix.stride(0)) if batched else 0
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return "N", down if rows > 1 else columns, stride
    if (down == 1 or rows == 1) and (right >= rows or columns == 1):
        return "T", right if columns > 1 else rows, stride
    return "N", columns, rows * columns if batched else 0


def _type(tensor: Tensor) -> str:
    name = str(tensor.dtype)
    try:
        return TYPE_OF_DTYPE[name]
    except KeyError:
        raise ValueError(f"no GEMM type is known for {name}") from None


def _size(type_name: str) -> float:
    return BYTES_OF_TYPE.get(type_name, 4)


def _plain(value: object) -> str:
    return canonical_json(value) if isinstance(value, list | dict | bool) else str(value)
