"""What a compiled program costs when it runs: operations, bytes, collectives and time, every loop turn counted."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from mllm_jax.planning.groups import Groups, axes_joined, replica_groups, source_target_pairs
from mllm_jax.planning.hlo_text import (
    HOST_MEMORY,
    Computation,
    Instruction,
    Program,
    arrays_of,
    bytes_of,
    parse_program,
)
from mllm_jax.planning.kernels import KERNEL_SHARE_OF_PEAK, KERNEL_TARGET, kernel_flops, kernel_name
from mllm_jax.planning.links import Links
from mllm_jax.planning.loops import trip_count
from mllm_jax.planning.operations import (
    FREE,
    Totals,
    called_instructions,
    collective_kind,
    is_again,
    part_of,
    work_of,
)


@dataclass
class CollectiveUse:
    """What the collectives of one kind over the same axes of the mesh do in one step, on one device."""

    kind: str
    axes: str
    count: float = 0.0
    bytes: float = 0.0
    """The larger of what a device puts in and gets out."""
    seconds: float = 0.0
    """Of its links."""
    exposed: float = 0.0
    """Of these, those in which the device waits."""
    synchronous: float = 0.0
    """How many of them nothing runs beside."""


@dataclass
class ProgramCost:
    """Of one device, in one run of the program."""

    compute: Totals = field(default_factory=lambda: defaultdict(float))
    """Seconds by part of the model, all but kernels."""
    kernels: Totals = field(default_factory=lambda: defaultdict(float))
    """Seconds of hand-written kernels, by name."""
    copies: float = 0.0
    """Seconds in which it waits for copies to memory on the chip that nothing hides."""
    flops: Totals = field(default_factory=lambda: defaultdict(float))
    """Of matrix products, by part of the model; those of kernels too."""
    kernel_flops: Totals = field(default_factory=lambda: defaultdict(float))
    again: float = 0.0
    """FLOPs that are done a second time to save memory."""
    bytes: float = 0.0
    """Read from the device's memory and written to it."""
    host_bytes: float = 0.0
    """Copied to the host's memory and back."""
    collectives: dict[tuple[str, str], CollectiveUse] = field(default_factory=dict)
    unknown_loops: set[str] = field(default_factory=set)
    """Loops of which only the data say how often they run; counted once."""
    unknown_kernels: set[str] = field(default_factory=set)
    """Kernels of which nobody says how many operations they do; their time is that of their bytes."""

    @property
    def exposed(self) -> float:
        """Seconds in which the device waits for its links."""
        return sum(use.exposed for use in self.collectives.values())

    @property
    def seconds(self) -> float:
        return sum(self.compute.values()) + sum(self.kernels.values()) + self.copies + self.exposed

    def add(self, other: "ProgramCost", times: float = 1.0) -> None:
        """Adds what runs `times` times."""
        for name in ("compute", "kernels", "flops", "kernel_flops"):
            for key, value in getattr(other, name).items():
                getattr(self, name)[key] += value * times
        for name in ("copies", "again", "bytes", "host_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name) * times)
        for key, use in other.collectives.items():
            own = self.collectives.setdefault(key, CollectiveUse(use.kind, use.axes))
            for name in ("count", "bytes", "seconds", "exposed", "synchronous"):
                setattr(own, name, getattr(own, name) + getattr(use, name) * times)
        self.unknown_loops |= other.unknown_loops
        self.unknown_kernels |= other.unknown_kernels


def program_cost(text: str, links: Links, mesh: Mapping[str, int]) -> ProgramCost:
    """The cost of a compiled program; of time, only on a TPU, whose compiler estimates it.

    Args:
        text: `compiled.as_text()`.
        links: of the machine it is compiled for.
        mesh: sizes of the mesh's axes, in the order of its devices.
    """
    program = parse_program(text)
    return _Costs(program, links, mesh).of(program.entry)


@dataclass
class _Timeline:
    """Of one computation: what has begun beside the instructions, and when it ends."""

    now: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    """When links in one direction, or the copy engine, become free."""
    pending: dict[str, tuple[float, CollectiveUse | None]] = field(default_factory=dict)
    """What was started, by the name under which it is waited for: its end, and the collective that it is."""

    def start(self, name: str, resource: str, seconds: float, use: CollectiveUse | None) -> None:
        end = max(self.now, self.busy.get(resource, 0.0)) + seconds
        self.busy[resource] = end
        self.pending[name] = (end, use)

    def wait(self, name: str) -> tuple[float, CollectiveUse | None]:
        """Seconds until what was started under this name has ended."""
        end, use = self.pending.pop(name, (0.0, None))
        waited = max(0.0, end - self.now)
        self.now += waited
        return waited, use


class _Costs:
    """Costs of the computations of a program, each worked out once."""

    def __init__(self, program: Program, links: Links, mesh: Mapping[str, int]) -> None:
        self._program = program
        self._links = links
        self._mesh = mesh
        self._chip = links.topology.chip
        self._known: dict[str, ProgramCost] = {}
        self._apart = _begun_apart(program)

    def of(self, name: str) -> ProgramCost:
        if name not in self._known:
            self._known[name] = self._worked_out(self._program.computations[name])
        return self._known[name]

    def _worked_out(self, computation: Computation) -> ProgramCost:
        cost, timeline = ProgramCost(), _Timeline()
        for instruction in computation.values():
            if instruction.opcode not in FREE:
                self._add(cost, timeline, computation, instruction)
        return cost

    def _add(self, cost: ProgramCost, timeline: _Timeline, computation: Computation, instruction: Instruction) -> None:
        opcode = instruction.opcode
        if opcode in ("while", "conditional", "call"):
            self._add_called(cost, timeline, computation, instruction)
        elif opcode in ("copy-start", "slice-start"):
            self._start_copy(cost, timeline, instruction)
        elif opcode == "async-update":
            timeline.pending[instruction.name] = timeline.pending.pop(instruction.operands[0], (0.0, None))
        elif opcode.endswith("-done"):
            self._finish(cost, timeline, instruction.operands[0])
        elif opcode == "custom-call" and instruction.target == KERNEL_TARGET:
            self._add_kernel(cost, timeline, computation, instruction)
        elif opcode == "custom-call" and instruction.estimated("estimated_cycles") is None:
            pass  # A TPU's own, such as AllocateBuffer and ConcatBitcast, name places in memory and do nothing.
        elif not self._add_collective(cost, timeline, computation, instruction):
            self._add_work(cost, timeline, computation, instruction)

    def _add_called(
        self, cost: ProgramCost, timeline: _Timeline, computation: Computation, instruction: Instruction
    ) -> None:
        times = 1.0
        if instruction.opcode == "while":
            turns = trip_count(self._program, computation, instruction)
            if turns is None:
                cost.unknown_loops.add(instruction.operation or instruction.name)
            times = 1.0 if turns is None else turns
            called = self.of(instruction.called("body")[0])
        elif instruction.opcode == "call":
            called = self.of(instruction.called("to_apply")[0])
        else:
            keys = ("branch_computations", "true_computation", "false_computation")
            branches = [self.of(name) for key in keys for name in instruction.called(key)]
            called = max(branches, key=lambda branch: (branch.seconds, sum(branch.flops.values()), branch.bytes))
        cost.add(called, times)
        timeline.now += called.seconds * times

    def _start_copy(self, cost: ProgramCost, timeline: _Timeline, instruction: Instruction) -> None:
        target, source = list(arrays_of(instruction.shape))[:2]
        if HOST_MEMORY in (target.memory, source.memory):
            cost.host_bytes += target.bytes
            timeline.pending[instruction.name] = (0.0, None)
            return
        size = min(target.bytes, source.bytes)
        cost.bytes += size
        seconds = size / self._chip.memory_bytes_per_second if self._chip and self._chip.clock else 0.0
        timeline.start(instruction.name, "copies", seconds, None)

    def _finish(self, cost: ProgramCost, timeline: _Timeline, name: str) -> None:
        waited, use = timeline.wait(name)
        if use is None:
            cost.copies += waited
        else:
            cost.collectives[use.kind, use.axes].exposed += waited

    def _add_kernel(
        self, cost: ProgramCost, timeline: _Timeline, computation: Computation, kernel: Instruction
    ) -> None:
        name, flops = kernel_name(kernel), kernel_flops(computation, kernel)
        work = work_of(self._program, computation, kernel)
        cost.bytes += work.bytes
        seconds = work.bytes / self._chip.memory_bytes_per_second if self._chip else 0.0
        if flops is None:
            cost.unknown_kernels.add(name)
        else:
            cost.kernel_flops[name] += flops
            cost.flops[part_of(kernel.operation)] += flops
            cost.again += flops if is_again(kernel.operation) else 0.0
            seconds = max(seconds, flops / self._chip.peak / KERNEL_SHARE_OF_PEAK if self._chip else 0.0)
        cost.kernels[name] += seconds
        timeline.now += seconds

    def _add_work(
        self, cost: ProgramCost, timeline: _Timeline, computation: Computation, instruction: Instruction
    ) -> None:
        work = work_of(self._program, computation, instruction)
        for part, flops in work.flops.items():
            cost.flops[part] += flops
        cost.again += work.again
        cost.bytes += work.bytes
        if self._chip is None or not self._chip.clock:
            return
        cycles = instruction.estimated("estimated_cycles")
        if cycles is not None:
            seconds = cycles / self._chip.clock
        else:
            roof = sum(work.flops.values()) / self._chip.peak, work.bytes / self._chip.memory_bytes_per_second
            seconds = max(roof)
        operation = instruction.operation
        cost.compute[part_of(operation)] += seconds
        timeline.now += seconds

    def _add_collective(
        self, cost: ProgramCost, timeline: _Timeline, computation: Computation, instruction: Instruction
    ) -> bool:
        """Whether the instruction is, begins, goes on with or ends a collective and has nothing else to be counted."""
        found, inside = self._collective_of(computation, instruction)
        if found is None:
            return False
        targets = {each.target for _, each in inside}
        channel = _channel(found)
        if "AsyncCollectiveDone" in targets:
            self._finish(cost, timeline, channel)
            return instruction.estimated("estimated_cycles") is None
        if instruction.opcode == "fusion" and channel in self._apart and "AsyncCollectiveStart" not in targets:
            # It takes the collective a step further beside its own work, be it in a loop that stands behind the start.
            return False
        kind = collective_kind(found)
        assert kind is not None
        if kind == "all-reduce" and any(each.opcode == "dynamic-slice" for _, each in inside):
            kind = "reduce-scatter"  # Fused with the choice of the part that stays.
        if "AsyncCollectiveStart" in targets:
            self._begin(cost, timeline, channel, kind, found)
        elif instruction.opcode.endswith("-start"):
            self._begin(cost, timeline, instruction.name, kind, found)
        else:
            use = self._begin(cost, timeline, instruction.name, kind, found)
            use.synchronous += 1
            self._finish(cost, timeline, instruction.name)
        return True

    def _collective_of(
        self, computation: Computation, instruction: Instruction
    ) -> tuple[Instruction | None, list[tuple[Computation, Instruction]]]:
        """The collective of an instruction, and what stands beside it in a fusion."""
        if collective_kind(instruction) is not None:
            return instruction, []
        if instruction.opcode not in ("fusion", "async-start"):
            return None, []
        inside = list(called_instructions(self._program, instruction))
        return next((each for _, each in inside if collective_kind(each) is not None), None), inside

    def _begin(
        self, cost: ProgramCost, timeline: _Timeline, name: str, kind: str, collective: Instruction
    ) -> CollectiveUse:
        permutes = kind == "collective-permute"
        devices = self._links.topology.size
        groups = source_target_pairs(collective) if permutes else replica_groups(collective, devices)
        axes = axes_joined(groups, self._mesh) if groups.size else "-"
        size = _collective_bytes(kind, collective, groups)
        seconds = self._links.seconds(kind, size, groups) if groups.size else 0.0
        use = cost.collectives.setdefault((kind, axes), CollectiveUse(kind, axes))
        use.count += 1
        use.bytes += size
        use.seconds += seconds
        timeline.start(name, self._links.direction(groups) if permutes else "links", seconds, use)
        return use


def _channel(collective: Instruction) -> str:
    return f"channel {collective.attribute('channel_id')}"


def _begun_apart(program: Program) -> set[str]:
    """Channels of the collectives that one fusion begins and another ends, wherever they stand."""
    return {
        _channel(each)
        for computation in program.computations.values()
        if any(each.target == "AsyncCollectiveStart" for each in computation.values())
        for each in computation.values()
        if collective_kind(each) is not None
    }


def _collective_bytes(kind: str, collective: Instruction, groups: Groups) -> float:
    """The larger of what a device puts into a collective and gets out of it."""
    shape = collective.shape
    if collective.opcode.endswith("-start") and isinstance(shape, tuple) and kind != "all-reduce":
        # The tuple is (what goes in, what comes out, and what the backend adds).
        size = max(bytes_of(each) for each in shape[:2])
    else:
        size = bytes_of(shape)
    if kind == "reduce-scatter" and collective.opcode.startswith("reduce-scatter"):
        size *= 1 if collective.opcode.endswith("-start") else groups.shape[1]
    return size
