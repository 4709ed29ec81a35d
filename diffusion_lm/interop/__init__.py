"""Published weights in and out: python -m diffusion_lm.interop --help.

safetensors.py   the file format, read without trust
layouts.py       names, shapes and config.json of SEDD, MDLM and its autoregressive baseline
runs.py          a workdir of ours from them, and back
"""
