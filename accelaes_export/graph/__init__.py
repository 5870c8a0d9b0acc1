"""The focus step as a graph: attention operator, processors, module, torch.export, ONNX."""
