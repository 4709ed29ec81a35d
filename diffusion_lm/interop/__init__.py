"""Published weights in and out: python -m diffusion_lm.interop --help.

safetensors.py   the file format, read without trust
layouts.py       names, shapes and config.json of SEDD, MDLM, its autoregressive baseline and GPT-2
runs.py          a workdir of ours from them, and back
"""
