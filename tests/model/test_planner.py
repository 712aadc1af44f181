"""The planner against a dictionary of what a server holds: any answers, in any order, with sessions that come, grow and
go meanwhile. Its sums are right at any time, no segment is sent twice at once, nothing is let go of that the server
does not hold; and once the server is honest, all is delivered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from mailboat.agent.entries import Entry, Fate, Phase
from mailboat.agent.planner import Idle, Negotiate, Planner, Send, Task, Wait
from mailboat.protocol.ids import new_id
from mailboat.protocol.negotiation import Decision, Policy, Reply, Riding, SegmentDecision, Verdict, Wish
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import Info, SegmentState, Status, Summary
from mailboat.protocol.uploads.outcomes import Advanced, Completed, Exhausted, Gone, OutOfSync, Refused, Retry

DIGEST = "ab" * 32
RIDING = Policy(riding=Riding(request=10_000, segment=500), details=Wish.ALL)


@dataclass
class Known:
    """A session, and what of each of its segments the server holds."""

    summary: Summary
    held: dict[int, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return all(self.held.get(each.index, 0) == each.size for each in self.summary.segments)


def segments(sizes: list[int], *, sealed: bool) -> tuple[SegmentState, ...]:
    last = len(sizes) - 1
    ended = [sealed or index < last for index in range(len(sizes))]
    return tuple(
        SegmentState(index, size, 1, end, DIGEST if end else "")
        for index, (size, end) in enumerate(zip(sizes, ended, strict=True))
    )


class PlannerMachine(RuleBasedStateMachine):
    """`known` is the model; `asked` and `sending` are the tasks under way."""

    def __init__(self) -> None:
        super().__init__()
        self.planner, self.now = Planner(), 0.0
        self.known: dict[str, Known] = {}
        self.asked: list[Negotiate] = []
        self.sending: list[Send] = []
        self.policy = Policy()
        self.in_parts = False

    @initialize(riding=st.booleans(), in_parts=st.booleans(), kinds=st.lists(st.booleans(), min_size=1, max_size=4))
    def terms(self, riding: bool, in_parts: bool, kinds: list[bool]) -> None:
        self.policy, self.in_parts = RIDING if riding else Policy(), in_parts
        for running in kinds:
            self.begin([100, 200], running, errors=False)
        self.refresh()

    # -- what there is -------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.known) < 8)
    @rule(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=3), running=st.booleans(), errors=st.booleans())
    def comes(self, sizes: list[int], running: bool, errors: bool) -> None:
        self.begin(sizes, running, errors=errors)

    def begin(self, sizes: list[int], running: bool, *, errors: bool) -> None:
        counts = [0] * len(COUNTERS)
        counts[COUNTERS.index("error")] = int(errors)
        number = len(self.known)
        status = Status.RUNNING if running else Status.STOPPED
        made = Summary(
            new_id(number, number.to_bytes(10, "big")),
            Info(),
            float(number),
            0.0,
            0.0,
            status,
            tuple(counts),
            segments(sizes, sealed=not running),
        )
        self.known[made.session_id] = Known(made)

    @precondition(lambda self: self._running())
    @rule(data=st.data(), more=st.integers(0, 300), ends=st.booleans())
    def grow(self, data: st.DataObject, more: int, ends: bool) -> None:
        known = self.known[data.draw(st.sampled_from(self._running()))]
        sizes = [each.size for each in known.summary.segments]
        sizes[-1] += more
        status = Status.STOPPED if ends else Status.RUNNING
        known.summary = replace(known.summary, status=status, segments=segments(sizes, sealed=ends))

    @rule()
    def refresh(self) -> None:
        """A new round; what was under way in the one before comes to nothing."""
        self.planner.refresh([known.summary for known in self.known.values()])
        self.asked.clear()
        self.sending.clear()

    @precondition(lambda self: self.planner.entries)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.planner.drop(data.draw(st.sampled_from(sorted(self.planner.entries))))

    @rule(seconds=st.sampled_from([1.0, 60.0, 3600.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def _running(self) -> list[str]:
        return sorted(each for each, known in self.known.items() if known.summary.status is Status.RUNNING)

    # -- what it wants to do -------------------------------------------------------------------------------------

    @precondition(lambda self: self.planner.entries)
    @rule(times=st.integers(1, 6), all_wanted=st.booleans())
    def next(self, times: int, all_wanted: bool) -> None:
        for _ in range(times):
            self._take(self.planner.next(self.now))
            if all_wanted and self.asked:
                task = self.asked.pop()
                wanted = tuple(self._said(offer, Verdict.SEND) for offer in task.offers)
                self.planner.negotiated(task, Reply(wanted, policy=self.policy), self.now)

    def _take(self, task: Task) -> None:
        if isinstance(task, Negotiate):
            assert task.offers
            assert task.aboard <= {offer.session_id for offer in task.offers}
            self.asked.append(task)
        elif isinstance(task, Send):
            under_way = {(each.session_id, each.segment.index) for each in self.sending}
            assert (task.session_id, task.segment.index) not in under_way
            assert task.offset <= task.segment.size
            self.sending.append(task)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        task = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        decisions = [self._decision(data, offer, offer.session_id in task.aboard) for offer in task.offers]
        told = Reply(tuple(each for each in decisions if each is not None), policy=self.policy)
        ended = self.planner.negotiated(task, told, self.now)
        for entry in ended:
            self._may_end(entry)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        task = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        self.planner.refused(task, "400", self.now)

    @precondition(lambda self: self.sending)
    @rule(
        data=st.data(),
        share=st.floats(0, 1),
        kind=st.sampled_from(["done", "done", "retry", "gone", "refused", "lie", "over"]),
    )
    def result(self, data: st.DataObject, share: float, kind: str) -> None:
        task = self.sending.pop(data.draw(st.integers(0, len(self.sending) - 1)))
        index, size = task.segment.index, task.segment.size
        held = self.known[task.session_id].held
        reached = size if kind == "done" else task.offset + int((size - task.offset) * share)
        held[index] = max(held.get(index, 0), reached)
        self.planner.progressed(task, held[index])
        outcome = {
            "done": Completed(size) if task.segment.sealed else Advanced(size),
            "retry": Retry(5.0, "slow down"),
            "gone": Gone(404),
            "refused": Refused(422, None, "no"),
            "lie": OutOfSync(size, 0, "it forgot"),
            "over": Exhausted("too many cuts"),
        }[kind]
        ended = self.planner.sent(task, outcome, self.now)
        assert ended is None or ended.fate is Fate.QUARANTINED

    def _decision(self, data: st.DataObject, offer: Summary, aboard: bool) -> Decision | None:
        known = self.known[offer.session_id]
        if aboard and data.draw(st.booleans()):
            known.held = {each.index: each.size for each in offer.segments}
        verdict = data.draw(
            st.sampled_from([None, Verdict.SEND, Verdict.SEND, Verdict.HAVE, Verdict.LATER, Verdict.DECLINE])
        )
        return None if verdict is None else self._said(offer, verdict)

    def _said(self, offer: Summary, verdict: Verdict) -> Decision:
        held = self.known[offer.session_id].held
        places = []
        for each in offer.segments:
            at = min(held.get(each.index, 0), each.size)
            complete = each.sealed and at == each.size
            digest = each.sha256 if complete else ""
            places.append(SegmentDecision(each.index, f"/u/{each.index}", at, complete=complete, sha256=digest))
            if self.in_parts and verdict is Verdict.SEND and not complete:
                break  # a server may ask for one segment after the other
        return Decision(offer.session_id, verdict, after=30.0, segments=tuple(places))

    def _may_end(self, entry: Entry) -> None:
        known = self.known[entry.summary.session_id]
        assert entry.summary.status is not Status.RUNNING, "nothing is final of what still grows"
        assert entry.fate is not Fate.ACCEPTED or known.whole, "let go of what the server does not hold"

    # -- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def the_sums_are_those_of_the_sessions(self) -> None:
        entries = self.planner.entries.values()
        is_open = [entry for entry in entries if entry.phase is not Phase.ENDED]
        assert self.planner.open == len(is_open)
        assert self.planner.left == sum(entry.lacking for entry in is_open if not entry.history.unwanted)

    def teardown(self) -> None:
        """The server is honest from now on, and takes all."""
        for known in self.known.values():
            sizes = [each.size for each in known.summary.segments]
            known.summary = replace(known.summary, status=Status.STOPPED, segments=segments(sizes, sealed=True))
        self.refresh()
        for _ in range(2000):
            task = self.planner.next(self.now)
            if isinstance(task, Idle):
                break
            if isinstance(task, Wait):
                self.now = task.until
            elif isinstance(task, Send):
                self.known[task.session_id].held[task.segment.index] = task.segment.size
                self.planner.sent(task, Completed(task.segment.size), self.now)
            else:
                assert isinstance(task, Negotiate)
                self._answer_honestly(task)
        else:
            raise AssertionError("it goes on for ever")
        ends = {entry.fate for entry in self.planner.entries.values()}
        assert ends <= {Fate.ACCEPTED, Fate.DECLINED, Fate.QUARANTINED}
        assert (self.planner.left, self.planner.open) == (0, 0)
        accepted = [each for each, entry in self.planner.entries.items() if entry.fate is Fate.ACCEPTED]
        assert all(self.known[each].whole for each in accepted)

    def _answer_honestly(self, task: Negotiate) -> None:
        for session in task.aboard:
            self.known[session].held = {each.index: each.size for each in self.known[session].summary.segments}
        decisions = [
            self._said(offer, Verdict.HAVE if self.known[offer.session_id].whole else Verdict.SEND)
            for offer in task.offers
        ]
        for entry in self.planner.negotiated(task, Reply(tuple(decisions), policy=self.policy), self.now):
            self._may_end(entry)


TestPlanner = PlannerMachine.TestCase
TestPlanner.settings = settings(
    max_examples=max(200, settings().max_examples), stateful_step_count=50, suppress_health_check=list(HealthCheck)
)
