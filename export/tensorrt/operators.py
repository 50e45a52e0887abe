"""The ONNX operators that TensorRT's parser reads.

Kept by hand from the published support matrix, ``docs/operators.md`` of github.com/onnx/onnx-tensorrt, in its versions
for TensorRT 8.5 (opset 9 to 17), 10.0 (opset 9 to 20) and 10.15 (opset 9 to 24). An operator is listed with the first
version of 10 or 11 that is known to read it: where the matrix of 10.0 has it, 10.0. Operators with an "N" in all of
them are not here.
"""

from __future__ import annotations

Version = tuple[int, int]

OLDEST: Version = (10, 3)
"""What JetPack 6 has, and will not leave."""

_ALWAYS: Version = (10, 0)

_READ_SINCE_10_0 = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu Clip
Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum
Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU HardSigmoid HardSwish Hardmax Identity If
InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM
LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not
OneHot Or Pad Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Relu Reshape Resize ReverseSequence RNN RoiAlign Round Scan Scatter ScatterElements ScatterND Selu Shape Shrink
Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""

_READ_LATER: dict[str, Version] = {
    "Attention": (10, 14),
    "BlackmanWindow": (10, 15),
    "DeformConv": (10, 15),
    "HammingWindow": (10, 15),
    "HannWindow": (10, 15),
    "Mish": (10, 15),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "STFT": (10, 15),
}
"""Those seen in the matrix of 10.15 alone may be older; `Attention` came with 10.14."""

OPERATORS: dict[str, Version] = {**dict.fromkeys(_READ_SINCE_10_0.split(), _ALWAYS), **_READ_LATER}
"""Operators of the standard domain, and the first version that reads them."""

INDIRECT = {
    "DynamicQuantizeLinear": "quantize with fixed scales (QuantizeLinear and DequantizeLinear) instead",
    "MatMulInteger": "quantize with QuantizeLinear and DequantizeLinear instead",
    "ConvInteger": "quantize with QuantizeLinear and DequantizeLinear instead",
    "QLinearMatMul": "quantize with QuantizeLinear and DequantizeLinear instead",
    "QLinearConv": "quantize with QuantizeLinear and DequantizeLinear instead",
}
"""What to do instead of an operator that is not read."""

MIN_OPSET = 9
MAX_OPSETS: tuple[tuple[Version, int], ...] = (((10, 0), 20), ((10, 15), 24), ((11, 0), 25))
"""The newest operator set that each version reads, from that version on."""


def max_opset(version: Version) -> int:
    """Return the newest operator set that a version of TensorRT reads."""
    return max(opset for since, opset in MAX_OPSETS if since <= version)
