"""Eight CPU devices for the whole suite, and quick compilation; set before JAX starts."""

import gc
import os
import random
import tempfile

# Tests compile many tiny programs and run each once: the compiler's effort would be most of it.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FAST += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST}".strip()
# A run that goes on, is evaluated or has other processes compiles the same programs again; the
# folder is of this process and those that it starts, so that nothing is left to another session.
PROGRAMS = tempfile.TemporaryDirectory(prefix="programs")
os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

gc.set_threshold(100_000)  # tracing makes many objects, of which few are garbage

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

WORDS = "the people of these united states have every reason to look forward with hope".split()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """A small text of several paragraphs, the same in every session."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rng = random.Random(0)
    paragraphs = [" ".join(rng.choices(WORDS, k=60)) + "." for _ in range(40)]
    path.write_text("\n\n".join(paragraphs))
    return str(path)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs of all files together would fill the memory of a laptop."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["cpu", "elsewhere"])
def platform(request, monkeypatch):
    """Code that has a way of its own for CPUs is run in the other way, too."""
    if request.param == "elsewhere":
        monkeypatch.setattr(
            jax.lax, "platform_dependent", lambda *args, default, **others: default(*args)
        )
    return request.param
