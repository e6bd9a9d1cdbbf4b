"""Engines that run models in place of PyTorch: OpenVINO, and onnxruntime for ONNX files."""

ENGINES = ("auto", "torch", "openvino", "onnxruntime")
ONNX_PROVIDERS = {  # onnxruntime's names
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
