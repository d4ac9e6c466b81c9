"""LiteRT: .tflite files, made of integer programs or by LiteRT's own converter."""
