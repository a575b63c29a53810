"""Writes a GGUF file in another format with llama.cpp's own quantizer: `quantize_gguf SOURCE KIND TARGET`."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp as ll

_SILENCE = ll.llama_log_callback(lambda level, text, data: None)
KINDS = {"Q4_0": ll.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": ll.LLAMA_FTYPE_MOSTLY_Q8_0, "BF16": ll.LLAMA_FTYPE_MOSTLY_BF16}


def main(source: str, kind: str, target: str) -> int:
    ll.llama_log_set(_SILENCE, ctypes.c_void_p(0))
    ll.llama_backend_init()
    parameters = ll.llama_model_quantize_default_params()
    parameters.ftype = KINDS[kind]
    # The source is quantized itself; its values, not its form, are what every engine starts from.
    parameters.allow_requantize = True
    return int(ll.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
