"""The names of torch's functions in a traced network, by what they do with filters and scales."""

LAYERS = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "linear", "addmm",
})  # fmt: skip
MULTIPLICATIONS = frozenset({"mul", "imul", "matmul", "multiply"})
PRODUCTS = LAYERS | MULTIPLICATIONS | {
    "addbmm", "addmv", "baddbmm", "bilinear", "bmm", "einsum", "embedding", "imatmul", "inner",
    "mm", "multi_head_attention_forward", "mv", "rmatmul", "scaled_dot_product_attention",
    "tensordot",
}  # fmt: skip
SCALINGS = LAYERS | MULTIPLICATIONS | {
    "addcmul", "batch_norm", "einsum", "group_norm", "instance_norm", "layer_norm", "rms_norm",
}  # fmt: skip
