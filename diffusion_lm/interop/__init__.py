"""Published weights in and out: python -m diffusion_lm.interop --help.

safetensors.py   the file format, read without trust
layouts.py       names and shapes in SEDD, MDLM, its autoregressive baseline and GPT-2
model_config.py  their config.json, and the config of ours that matches
runs.py          a workdir of ours from them, and back
"""
