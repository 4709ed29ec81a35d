"""Published weights in and out: python -m diffusion_lm.interop --help.

safetensors.py   the file format, read without trust
gguf.py          GGUF files, likewise
sources.py       what lies in files and folders
layouts.py       names and shapes in SEDD, MDLM, its autoregressive baseline, GPT-2 and LLaMA
model_config.py  their config.json, and the config of ours that matches; llama.py  LLaMA's
runs.py          a workdir of ours from them, and back
"""
