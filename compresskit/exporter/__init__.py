"""torch to ONNX: lowering of packed layers, the parity gate, and static int8."""
