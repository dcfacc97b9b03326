"""The graph of an ONNX file: attention as one operation, and weights in 8 bits."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

OPSET = 20  # the first with GELU as one operation
_SDPA = torch.ops.aten.scaled_dot_product_attention.default
# onnxruntime has a kernel for an operation of this name that never holds all products of queries and keys. A file with
# this definition in standard operations is run by every other runtime too, and checked by the onnx package.
_DOMAIN, _NAME = "com.microsoft", "MultiHeadAttention"
_ATTENTION = f"""
<domain: "{_DOMAIN}", opset_import: ["" : {OPSET}]>
{_NAME} <num_heads> (query, key, value) => (output) {{
  heads = Constant <value_int: int = @num_heads> ()
  one = Constant <value_ints = [1]> ()
  heads_1d = Reshape (heads, one)
  batch_tokens = Constant <value_ints = [0, 0]> ()
  rest = Constant <value_ints = [-1]> ()
  apart = Concat <axis = 0> (batch_tokens, heads_1d, rest)
  together = Concat <axis = 0> (batch_tokens, rest)
  query_apart = Reshape (query, apart)
  key_apart = Reshape (key, apart)
  value_apart = Reshape (value, apart)
  q = Transpose <perm = [0, 2, 1, 3]> (query_apart)
  k = Transpose <perm = [0, 2, 3, 1]> (key_apart)
  v = Transpose <perm = [0, 2, 1, 3]> (value_apart)
  shape = Shape <start = 3> (q)
  width = Cast <to = 1> (shape)
  root = Sqrt (width)
  products = MatMul (q, k)
  scaled = Div (products, root)
  weights = Softmax <axis = -1> (scaled)
  mixed = MatMul (weights, v)
  mixed_apart = Transpose <perm = [0, 2, 1, 3]> (mixed)
  output = Reshape (mixed_apart, together)
}}
"""


def translations(program: Any) -> dict[Any, Callable[..., Any]]:
    """Translations for `torch.onnx.export(custom_translation_table=...)` that this program needs.

    Attention that is not plain (`(batch, heads, tokens, width)`, without mask, scale or dropout) keeps torch's own.
    """
    calls = [node for node in program.graph.nodes if node.target is _SDPA]
    plain = all(len(node.args) == 3 and not node.kwargs and node.args[0].meta["val"].ndim == 4 for node in calls)
    return {_SDPA: _attention()} if calls and plain else {}


def _attention() -> Callable[..., Any]:
    import onnxscript
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    op: Any = onnxscript.opset20
    parameter, kind = OpSchema.FormalParameter, OpSchema.AttrType.INT
    fused = Op(
        Opset(_DOMAIN, 1), _NAME,
        OpSchema(
            _NAME, _DOMAIN, 1, inputs=[parameter(name, "T") for name in ("query", "key", "value")],
            outputs=[parameter("output", "T")], type_constraints=[("T", ["tensor(float)"], "")],
            attributes=[OpSchema.Attribute("num_heads", kind, required=True)],
        ),
    )  # fmt: skip

    def translate(query: Any, key: Any, value: Any) -> Any:
        heads, width = query.shape[1], query.shape[3]

        def together(x: Any) -> Any:  # (batch, heads, tokens, width) -> (batch, tokens, heads * width)
            return op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, heads * width]))

        mixed = fused(together(query), together(key), together(value), num_heads=heads)
        return op.Transpose(op.Reshape(mixed, op.Constant(value_ints=[0, 0, heads, width])), perm=[0, 2, 1, 3])

    return translate


def define_attention(model: Any) -> None:
    """Add the definition of the fused attention to a model of onnx_ir that has it."""
    from onnx.parser import parse_function
    from onnx_ir.serde import deserialize_function

    if any(node.domain == _DOMAIN and node.op_type == _NAME for node in model.graph):
        function = deserialize_function(parse_function(_ATTENTION))
        model.functions[function.identifier()] = function


def quantize(path: Path) -> int:
    """Round the weight matrices of the classifier in an ONNX file to 8 bits; returns how many products have one.

    The inputs of these products are rounded while the model runs, to a range that is taken from each batch ("dynamic"
    quantization), so that the answer for a wave depends a little on the others in its batch. Everything else, the
    front-end too, stays float32: convolutions, since onnxruntime computes them more slowly in integers.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [
        node.name for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants and "'model.classifier'" in _scopes(node)
    ]  # fmt: skip
    if names:
        del model.graph.value_info[:]  # the exporter leaves shapes there that its optimiser has made wrong
        # With 7 bits no sum of two products exceeds 16 bits, as it could on processors without VNNI instructions.
        quantize_dynamic(
            model, os.fspath(path), op_types_to_quantize=["MatMul"], nodes_to_quantize=names,
            weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
        )  # fmt: skip
    return len(names)


def _scopes(node: Any) -> str:
    """Names of the modules that an operation comes from, as torch's exporter stores them."""
    return next((each.value for each in node.metadata_props if each.key == "pkg.torch.onnx.name_scopes"), "")


def describe_inside(path: Path, key: str, text: str) -> None:
    """Replace a text in the metadata of an ONNX file."""
    import onnx

    model = onnx.load(path)
    next(each for each in model.metadata_props if each.key == key).value = text
    onnx.save(model, path)
