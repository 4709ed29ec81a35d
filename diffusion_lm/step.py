"""The state of a run and the compiled train step: microbatches, gradient, update, EMA."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from diffusion_lm import keys, parallel
from diffusion_lm.types import BATCH_AXES, Array, Objective, Optimizer, Params, Ratio

SPIKE = 2  # what the metric "skipped" says of an update with too large a gradient
USUAL = 100  # updates whose mean says how large a gradient usually is


class Settings(NamedTuple):
    """The section `train` of a config, see `settings`."""

    steps: int
    batch_size: int
    microbatches: int
    exact: bool
    ema: float
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep: int
    num_samples: int
    tensorboard: bool
    start: str
    patience: int
    skip_spikes: float


def settings(
    *,
    steps: int,
    batch_size: int,
    microbatches: int = 1,
    exact: bool = False,
    ema: float = 0.0,
    log_every: int = 100,
    eval_every: int = 1000,
    checkpoint_every: int = 1000,
    keep: int = 2,
    num_samples: int = 2,
    tensorboard: bool = False,
    start: str = "random",
    patience: int = 1800,
    skip_spikes: float = 0.0,
) -> Settings:
    """The loop's settings. `batch_size` is global; with `exact` the parameters are the same bit for
    bit on any number of devices that divides `microbatches` (see make_train_step); `ema` is the
    decay of the averaged parameters that are evaluated and sampled from (0: none); `keep` is how
    many checkpoints stay; `num_samples` are printed at each evaluation; `start` is "random",
    "bigram" (bigram.py) or the folder of a run of the same tokens, whose network is taken
    (graft.py); after `patience` seconds without a step, evaluations aside, a run ends (watchdog.py;
    0: never); after the first hundred steps an update is skipped whose gradient's norm is more than
    `skip_spikes` times what is usual (0: none is)."""
    given = Settings(**locals())
    for name in ("batch_size", "microbatches", "log_every", "eval_every", "keep"):
        if getattr(given, name) < 1:
            raise ValueError(f"train.{name} must be at least 1, got {getattr(given, name)}")
    if steps < 0:
        raise ValueError(f"train.steps must be 0 (only put together) or more, got {steps}")
    if checkpoint_every < 1 or num_samples < 0:
        raise ValueError("train.checkpoint_every must be positive, train.num_samples not negative")
    if skip_spikes and not skip_spikes > 1:
        raise ValueError(f"train.skip_spikes must be 0 (none) or more than 1, got {skip_spikes}")
    if patience < 0:
        raise ValueError(f"train.patience must be 0 (for ever) or more seconds, got {patience}")
    if not 0 <= ema < 1:
        raise ValueError(f"train.ema must lie in [0, 1), got {ema}")
    if batch_size % microbatches:
        raise ValueError(
            f"train.batch_size {batch_size} is not divisible by train.microbatches {microbatches}"
        )
    if tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "train.tensorboard needs the extra: pip install 'diffusion_lm[tensorboard]'"
        )
    return given


class TrainState(NamedTuple):
    """Everything that training changes. `ema` is None if the run keeps no average."""

    step: Array  # int32[], updates done; also the position in the data
    params: Params
    opt_state: optax.OptState  # with skip_spikes, (that, the usual norm of the gradient)
    ema: Params | None  # of what is trained


def init_state(
    objective: Objective, optimizer: Optimizer, *, seed: int, ema: float, skip_spikes: float = 0.0
) -> TrainState:
    """A new state; pure, so it can be jitted with shardings or shape-evaluated."""
    params = objective.init(keys.stream(seed, "init"))
    mine = trained(objective, params)
    opt_state = optimizer.transform.init(mine)
    if skip_spikes:
        opt_state = opt_state, jnp.float32(0)
    return TrainState(jnp.int32(0), params, opt_state, averaged(mine, ema))


def trained(objective: Objective, params: Params) -> Params:
    """The parts of params that are trained: all but the frozen ones."""
    return {name: part for name, part in params.items() if name not in objective.frozen}


def averaged(params: Params, ema: float) -> Params | None:
    """The average that a run starts with."""
    return jax.tree.map(jnp.copy, params) if ema else None


def eval_params(state: TrainState) -> Params:
    """The parameters to evaluate and sample with: the average where there is one."""
    return state.params | (state.ema or {})


def make_train_step(
    objective: Objective,
    optimizer: Optimizer,
    *,
    mesh: Mesh,
    seed: int,
    microbatches: int = 1,
    exact: bool = False,
    ema: float = 0.0,
    skip_spikes: float = 0.0,
) -> Callable:
    """(state, global batch) -> (state, metrics), to be jitted with a donated state.

    The gradient is that of sum(loss) / sum(tokens) over the whole global batch. Noise depends on
    (seed, step, row) alone, so the number of microbatches and devices does not change the masks.
    If the loss or its gradient is not finite anywhere, all but the step stays as it was, on all
    devices alike, and the metric "skipped" is 1. It is SPIKE, and the same happens, if the norm of
    the gradient is more than `skip_spikes` times the mean of about the last USUAL ones, in which a
    larger one counts as just that much: so norms that have risen for good are soon usual.

    With `exact` the batch is cut into `microbatches` runs of rows. Each is whole on one device, and
    their gradients, which every device then holds all of, are added up in the order of the rows: so
    the result does not depend on the number of devices, which must divide `microbatches`, by one
    bit. On CPUs this holds among meshes of one process: XLA compiles otherwise where a process has
    another number of devices. It is to tell a fault from rounding, and for meshes of one axis,
    "data". Raises ValueError for others.
    """
    devices = mesh.shape["data"]
    if exact and (mesh.size > devices or microbatches % devices):
        raise ValueError(
            "train.exact wants a mesh of data alone, whose size divides train.microbatches; got "
            f"{dict(mesh.shape)} and {microbatches} microbatches"
        )

    def total(mine, params, batch, key):
        out = objective.loss(params | mine, batch, key, train=True)
        return out.loss.sum(), (out.tokens.sum(), out.metrics)

    def in_order(grad, mine, params, batch, key):
        """The sum of grad over runs of rows."""

        @partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(BATCH_AXES), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        def own(mine, params, batch, key):
            def one(run):
                # walls, or what the compiler joins would depend on how many runs there are here
                run = jax.lax.optimization_barrier(run)
                with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # it is on one device
                    return jax.lax.optimization_barrier(grad(mine, params, run, key))

            runs = parallel.spread_microbatches(batch, microbatches // devices, 1)
            each = jax.lax.all_gather(jax.lax.map(one, runs), BATCH_AXES, tiled=True)
            first = jax.tree.map(lambda a: jnp.zeros_like(a[0]), each)
            return jax.lax.scan(lambda sum, a: (jax.tree.map(jnp.add, sum, a), None), first, each)[
                0
            ]

        return jax.lax.optimization_barrier(own(mine, params, batch, key))

    def train_step(state: TrainState, batch):
        key = keys.stream(seed, "loss", state.step)
        batch = keys.number(batch)
        batch["step"] = jnp.full(batch["row"].shape, state.step)
        mine = trained(objective, state.params)
        grad = jax.value_and_grad(total, has_aux=True)
        if exact:
            (nats, (tokens, metrics)), grads = in_order(grad, mine, state.params, batch, key)
        elif microbatches == 1:
            (nats, (tokens, metrics)), grads = grad(mine, state.params, batch, key)
        else:
            chunks = parallel.spread_microbatches(batch, microbatches, parallel.batch_shards(mesh))

            def add(carry, chunk):
                return jax.tree.map(jnp.add, carry, grad(mine, state.params, chunk, key)), None

            first = jax.tree.map(lambda a: a[0], chunks)
            zeros = jax.eval_shape(grad, mine, state.params, first, key)
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), zeros)
            ((nats, (tokens, metrics)), grads), _ = jax.lax.scan(add, zeros, chunks)

        norm = optax.tree.norm(grads) / tokens
        fine = finite = jnp.isfinite(nats) & jnp.isfinite(norm)
        opt_state, usual = state.opt_state if skip_spikes else (state.opt_state, None)
        if skip_spikes:
            most = jnp.where(state.step < USUAL, jnp.inf, skip_spikes * usual)
            fine = finite & (norm <= most)
            change = (jnp.minimum(norm, most) - usual) / jnp.minimum(state.step + 1, USUAL)
            usual = jnp.where(finite, usual + change, usual)

        def updated(kept, mine, opt_state, average):
            mean = jax.tree.map(lambda g: g * (1 / tokens), grads)
            updates, changed = optimizer.transform.update(mean, opt_state, mine)
            mine = kept(optax.apply_updates(mine, updates), mine)
            if ema:
                # A new average follows fast: its decay rises as (1 + step) / (10 + step).
                decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
                mixed = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, mine)
                average = kept(mixed, average)
            return mine, kept(changed, opt_state), average

        def branch(*before):
            always = partial(updated, lambda new, old: new)
            return jax.lax.cond(fine, always, lambda *same: same, *before)

        def choice(new, old):
            return jax.tree.map(partial(jnp.where, fine), new, old)

        # Of an update that is skipped: CPUs work in place in a branch, others would copy for it.
        before = mine, opt_state, state.ema
        mine, opt_state, average = jax.lax.platform_dependent(
            *before, cpu=branch, default=partial(updated, choice)
        )
        opt_state = (opt_state, usual) if skip_spikes else opt_state
        metrics["grad_norm"] = Ratio(norm, jnp.float32(1))
        skipped = jnp.where(fine, 0.0, jnp.where(finite, SPIKE, 1.0))
        metrics["skipped"] = Ratio(skipped, jnp.float32(1))
        return TrainState(state.step + 1, state.params | mine, opt_state, average), metrics

    return train_step
