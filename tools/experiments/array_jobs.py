"""A study as an array of jobs that anything can run: one cell a job, by its number."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence

from backbones.config import unknown
from tools.experiments.job import TRY_AGAIN
from tools.experiments.status import PlannedCell


def example_script(kind: str, cells: Sequence[PlannedCell], command: Sequence[str]) -> str:
    """A script that runs every cell, to be filled in where it says EDIT.

    Args:
        kind: one of EXAMPLES.
        command: the command line that runs a cell when `--cell N` is added.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in EXAMPLES:
        raise ValueError(unknown("example", kind, EXAMPLES))
    return EXAMPLES[kind](cells, shlex.join(command))


def waves(cells: Sequence[PlannedCell]) -> list[list[int]]:
    """Numbers of the cells that wait for nothing, then of those that wait for these, and so on."""
    depth: dict[int, int] = {}
    found: list[list[int]] = []
    for cell in cells:  # what a cell waits for comes before it, or is recorded
        depth[cell.number] = depth.get(-1 if cell.waits_for is None else cell.waits_for, -1) + 1
        found += [[]] * (depth[cell.number] + 1 - len(found))
        found[depth[cell.number]] = [*found[depth[cell.number]], cell.number]
    return found


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as Slurm writes them: 0-3,7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def _largest(cells: Sequence[PlannedCell]) -> tuple[int, int, float]:
    """GPUs, cores and gigabytes that are enough for each cell."""
    needs = [cell.needs for cell in cells]
    return (
        max(each.processes if each.gpus is None else each.gpus for each in needs),
        max(cell.needs.cores or 8 for cell in cells),
        max(cell.needs.memory_gb or 32.0 for cell in cells),
    )


def _bash(cells: Sequence[PlannedCell], command: str) -> str:
    return f"""#!/usr/bin/env bash
# Every cell, one after the other, on this machine; run it again to go on.
failed=0
for cell in {" ".join(str(cell.number) for cell in cells)}; do
  {command} --cell "$cell" || {{ code=$?; [ $code -lt 128 ] || exit $code; failed=1; }}
done
exit $failed
"""


def _slurm(cells: Sequence[PlannedCell], command: str) -> str:
    gpus, cores, memory = _largest(cells)
    lines = [
        "#!/usr/bin/env bash",
        "# One array for cells that wait for nothing, one after it for those that start from their weights.",
        "# EDIT the partition and the time. A job whose time is over, or that must wait, is queued again",
        "# and goes on from its checkpoint; one that fails for good ends with 1.",
    ]
    options = f"--parsable --requeue --open-mode=append --gpus={gpus} --cpus-per-task={cores}"
    options += f" --mem={memory:g}G --time=24:00:00 --partition=gpu --signal=TERM@120"
    dependency = ""
    for numbers in waves(cells):
        inner = f'srun {command} --cell "$SLURM_ARRAY_TASK_ID" || {{ code=$?; [ $code -eq 1 ] || '
        inner += 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; exit $code; }'
        lines.append(
            f"job=$(sbatch {options} --array={_ranges(numbers)}{dependency} --wrap {shlex.quote(inner)})"
        )
        dependency = ' --dependency="afterany:$job"'
    return "\n".join(lines) + "\n"


def _kubernetes(cells: Sequence[PlannedCell], command: str) -> str:
    gpus, cores, memory = _largest(cells)
    numbers = [cell.number for cell in cells]
    shell = f'exec {command} --cell "$JOB_COMPLETION_INDEX"'
    if numbers != list(range(len(numbers))):  # a part of the study
        listed = " ".join(map(str, numbers))
        shell = f'cells=({listed}); exec {command} --cell "${{cells[JOB_COMPLETION_INDEX]}}"'
    gpu = f", nvidia.com/gpu: {gpus}" if gpus else ""
    return f"""# EDIT image and claim: a volume that all pods share holds study, data and output.
# kubectl apply -f this.yaml. A pod whose cell waits for another ends with {TRY_AGAIN} and is started again later.
apiVersion: batch/v1
kind: Job
metadata: {{name: sebench}}
spec:
  completionMode: Indexed
  completions: {len(cells)}
  parallelism: {min(len(cells), 100)}
  backoffLimitPerIndex: 2
  podFailurePolicy:
    rules:
      - action: Ignore
        onExitCodes: {{containerName: sebench, operator: In, values: [{TRY_AGAIN}, 130, 143]}}
      - action: Ignore
        onPodConditions: [{{type: DisruptionTarget}}]
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 60
      containers:
        - name: sebench
          image: sebench:latest
          command: [bash, -c, {_yaml_text(shell)}]
          workingDir: /study
          resources:
            limits: {{cpu: {cores}, memory: {memory:g}Gi{gpu}}}
          volumeMounts: [{{name: study, mountPath: /study}}]
      volumes:
        - name: study
          persistentVolumeClaim: {{claimName: study}}
"""


def _yaml_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _sagemaker(cells: Sequence[PlannedCell], command: str) -> str:
    run = f"cd /opt/ml/input/data/study && exec {command} --cell $cell"
    algorithm = {
        "TrainingImage": "ACCOUNT.dkr.ecr.REGION.amazonaws.com/sebench:latest",
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["bash", "-c", run],
    }
    lines = [
        "#!/usr/bin/env bash",
        "# One training job a cell, on a file system (FSx, EFS) that all share. EDIT the first lines.",
        "set -e",
        "role=arn:aws:iam::ACCOUNT:role/sebench instance=ml.g5.2xlarge",
        "volume=fs-0123 path=/fsx/study subnets=subnet-0123 groups=sg-0123",
        f"algorithm={shlex.quote(json.dumps(algorithm))}",
        'mount="FileSystemId=$volume,FileSystemType=FSxLustre,FileSystemAccessMode=rw,DirectoryPath=$path"',
        "start() {",
        '  aws sagemaker create-training-job --training-job-name "sebench-$1-$(date +%s)" --role-arn "$role" \\',
        '    --algorithm-specification "$algorithm" --environment "cell=$1" \\',
        '    --input-data-config "ChannelName=study,DataSource={FileSystemDataSource={$mount}}" \\',
        "    --output-data-config S3OutputPath=s3://BUCKET/sebench \\",
        '    --resource-config "InstanceType=$instance,InstanceCount=1,VolumeSizeInGB=50" \\',
        "    --stopping-condition MaxRuntimeInSeconds=432000 \\",
        '    --vpc-config "Subnets=$subnets,SecurityGroupIds=$groups" --query TrainingJobArn --output text',
        "}",
    ]
    for numbers in waves(cells):
        lines += [
            "jobs=()",
            f"for cell in {' '.join(map(str, numbers))}; do",
            '  arn=$(start "$cell"); jobs+=("${arn##*/}")',
            "done",
            'for job in "${jobs[@]}"; do',
            '  aws sagemaker wait training-job-completed-or-stopped --training-job-name "$job" || true',
            "done",
        ]
    return "\n".join(lines) + "\n"


EXAMPLES: dict[str, Callable[[Sequence[PlannedCell], str], str]] = {
    "bash": _bash,
    "slurm-array": _slurm,
    "kubernetes": _kubernetes,
    "sagemaker": _sagemaker,
}
