"""
Train a TinyNet, from scratch or from saved weights, on one process or many.

    accelerate launch train.py --recipe configuration/quickstart.yaml
    accelerate launch train.py --recipe configuration/finetune.yaml --model timm/tinynet_a.in1k --dataset photos
    accelerate launch --config_file configuration/accelerate/eight_gpus.yaml train.py \
        --recipe configuration/tinynet_c.yaml --dataset ILSVRC/imagenet-1k

--explain prints what a run would be, --doctor what limits it; --help lists every flag. The same command continues an
interrupted run, and ends with the same weights to the bit. SIGTERM, SIGUSR1 and Ctrl-C save first; the exit code is
then 75.

One unit: the optimizer step. Nothing random has a state: the order of the samples is a function of (seed, epoch), the
augmentation of a sample of (seed, epoch, index), dropout of (seed, step, rank), the learning rate of the step. What a
checkpoint holds is model, optimizer, EMA and progress, and nothing else is needed to continue.
"""

if __name__ == "__main__":  # before the other imports, which take ten seconds, in which a launcher may be killed
    from training.system.interruption import end_with_launcher

    end_with_launcher()

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers
from accelerate import Accelerator

from hub_card.push import check_rights, publish_run
from training.command import run_command
from training.config.train_config import TrainConfig, parse_config
from training.data.sources import Splits, load_splits, num_samples
from training.doctor.diagnosis import diagnose
from training.engine.accelerator import build_accelerator, set_up_backend
from training.engine.failures import ending_of
from training.engine.loaders import build_loaders
from training.engine.network import build_network
from training.engine.policy import Outcome
from training.engine.recording import open_recorder, opening_lines
from training.engine.result import print_result
from training.engine.step import build_step
from training.engine.trainer import Trainer
from training.explain import explain_run
from training.loading.sampling import TrainingPlan
from training.modeling.ema import ExponentialMovingAverage
from training.optim.lr_schedule import lr_schedule
from training.optim.optimizer import build_optimizer
from training.run.identity import identify
from training.run.run_folder import default_run_name
from training.run.same_run import check_same_run
from training.run.start import open_on_rank_0, resume
from training.system.compiler_cache import remove_compiler_cache, use_compiler_cache
from training.system.interruption import Interruption


def main(argv: Sequence[str]) -> None:
    """What to train, where and on what; then `train`."""
    # 1. What to do: defaults < recipe < command line.
    config, command_line = parse_config(argv)
    run_folder = Path(config.output_dir) / (config.run_name or default_run_name(config.model, config.dataset))
    transformers.utils.logging.disable_progress_bar()  # one bar is enough

    # 2. Where: Accelerate gives device, precision and processes.
    accelerator = build_accelerator(config, run_folder)
    config = dataclasses.replace(config, precision=accelerator.mixed_precision)
    set_up_backend(accelerator.device)
    if command_line.explain:
        if accelerator.is_main_process:
            explain_run(config, accelerator.num_processes)
        return
    interruption = Interruption()

    # 3. Data. All ranks read at once: datasets locks its cache while one of them fills it.
    splits = load_splits(config.dataset, **config.source())
    sizes = (config.global_batch_size, config.per_device_batch_size)
    plan = TrainingPlan(num_samples(splits.train), *sizes, accelerator.num_processes, config.drop_last)
    if command_line.doctor:  # of all ranks at once, as they will train
        diagnosis = diagnose(config, splits, plan, accelerator, seconds=command_line.doctor)
        if accelerator.is_main_process:
            print(diagnosis, flush=True)

    train(config, command_line.rescaling, run_folder, accelerator, splits, plan, interruption)


def train(
    config: TrainConfig,
    rescaling: str | None,
    run_folder: Path,
    accelerator: Accelerator,
    splits: Splits,
    plan: TrainingPlan,
    interruption: Interruption,
) -> None:
    """From the model to the result, for every rank. In one piece, because it is to be read from top to bottom."""
    # 4. Model. BatchNorm statistics stay each rank's own while it trains, and are averaged before they are used.
    device, rank, is_main = accelerator.device, accelerator.process_index, accelerator.is_main_process
    network, head = build_network(config, splits.class_names, device, num_processes=accelerator.num_processes)

    # 5. Optimizer, learning rate, EMA.
    optimizer = build_optimizer(network, **config.update())
    learning_rate = lr_schedule(config, plan.steps_per_epoch)
    ema = ExponentialMovingAverage(network, config.ema_decay) if config.ema_decay else None

    # 6. Begin, or resume: rank 0 chooses the checkpoint, and every rank reads it. `_lock` is held while it lives.
    check = functools.partial(check_rights, config.push_to_hub) if config.push_to_hub else None
    checkpoint, _lock = open_on_rank_0(run_folder, config.resume, rank=rank, also=check)
    identity = identify(config, splits, device, rank=rank, num_processes=accelerator.num_processes)
    check_same_run(run_folder, checkpoint, vars(config) | identity.data | {"classes": splits.class_names})
    start = resume(checkpoint, run_folder, config, identity, plan, rank, network, optimizer, ema)
    progress = start.progress
    if config.compile:
        use_compiler_cache(run_folder, rank)
        network.compile()
    model, optimizer = accelerator.prepare(network, optimizer, device_placement=[True, False])
    start.restore_rank(accelerator, [network, ema.model] if ema else [network])

    # 7. Loaders. Workers make uint8 images; what can be done for a whole batch is done on the device.
    loaders = build_loaders(config, splits, plan, network.config, rank, progress.step, start.local.get("stream"))

    # 8. What people see and what is written down, on rank 0.
    lines = opening_lines(config, rescaling, splits, network.config, head, run_folder, start, loaders, plan, device)
    recorder = open_recorder(config, run_folder, plan, start, accelerator, lines)

    # 9. The loop: one optimizer step a turn, and after the last of an epoch its end.
    step = build_step(config, accelerator, model, network, optimizer, ema, recorder.timer)
    trainer = Trainer(
        config, run_folder, splits, plan, identity, start, step, loaders, learning_rate, recorder, interruption
    )
    model.train()
    while progress.step < trainer.total_steps or progress.epoch_end_due:
        if not progress.epoch_end_due:
            lr = learning_rate(progress.step)
            gradients = trainer.train_step()  # micro-batches: forward, backward
            agreed = trainer.agree(gradients)  # before a weight changes, every rank knows every rank's loss and wish
            outcome = trainer.decide(gradients, agreed)  # bad images, numbers that are not finite, fp16's overflows
            if outcome is Outcome.UPDATE:
                step.apply_update(lr)
            else:
                step.leave_out()
            trainer.end_step(gradients, agreed, outcome, lr)  # record; save or stop where a rank wishes it
        if progress.epoch_end_due:
            trainer.end_epoch()  # evaluate, record, keep the best, save

    # 10. The result.
    recorder.display.close()
    interruption.end()
    if is_main:
        remove_compiler_cache(run_folder)
        print_result(run_folder, trainer.summary, splits)
    accelerator.end_training()
    if is_main and config.push_to_hub:  # the other processes need not wait for it
        print(publish_run(run_folder, config.push_to_hub))


def run(argv: Sequence[str]) -> int:
    """`main` as a command: the exit code, after one sentence where it is not 0."""
    intact = "; what the run has saved is intact, and the same command resumes"
    return run_command(main, argv, launched=True, disk_refuses=intact, recognize=ending_of)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
