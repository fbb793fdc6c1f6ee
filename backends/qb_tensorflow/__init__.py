"""TensorFlow and Keras models, quantized by TFLiteConverter."""
