"""A batch on a Dask cluster: slides and parts of slides wherever there is room, written here.

A slide is three kinds of work: a look that makes its plan (all of it, for a photo), its parts, and what puts these
together and makes the files. They are the steps that `napari_wbc.whole.find` does in one process. Parts are fixed by
the slide alone: the number of workers changes who does them and nothing else. A part that was lost with its worker is
done again elsewhere. Cells stay with the workers; what comes here are files as bytes, to be written as they are.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from .batch import Step
from .batch_folder import Terms, check_same
from .batch_made import Made
from .inputs import Input, fingerprint
from .pipeline import Analysis, Progress, of_slide, scaled
from .plan import Plan, make_plan
from .record import Settings, open_input
from .segment import SegmentParameters
from .slide import ImageError, Slide
from .whole import Sighting, assemble, examine, judge, once

if TYPE_CHECKING:
    from .classifier import Classifier

_OFTEN = 0.5
_ANSWER = 10.0
_AHEAD = 2
"""Slides that are begun beyond one a worker: there is work while tables are written."""


class ClusterError(RuntimeError):
    """The cluster cannot be used, or is gone; the message says what to do."""


@dataclass(frozen=True)
class Work:
    """What a worker must know to work on a slide."""

    item: Input
    before: tuple[tuple[str, int], ...]
    settings: Settings
    model: str | None
    sha256: str
    device: str | None
    ome_labels: bool


@lru_cache(maxsize=1)
def _classifier(model: str | None, sha256: str, device: str | None) -> Classifier:
    """The model, loaded once a worker."""
    from .classifier import Classifier

    classifier = Classifier.load(model, device=device)
    if classifier.card.sha256 != sha256:
        raise ImageError(f"the worker has another model called {model}; install the same on all machines")
    return classifier


@lru_cache(maxsize=2)
def _slide(work: Work) -> Slide:
    settings = work.settings
    slide = Slide.open(work.item.path, mpp=settings.mpp, max_megapixels=settings.max_megapixels)
    return replace(slide, name=work.item.slide)


def _drained(steps: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def look(work: Work) -> Plan | Made:
    """Make the plan of a whole slide, or do all of a photo."""
    check_same(work.item, dict(work.before))
    slide = _slide(work)
    if slide.is_whole:
        parameters = scaled(SegmentParameters(mpp=work.settings.mpp), slide)
        plan: Plan = _drained(make_plan(slide, parameters, everywhere=work.settings.everywhere))
        return plan
    classifier = _classifier(work.model, work.sha256, work.device)
    analysis: Analysis = _drained(open_input(work.item, classifier, work.settings))
    return Made.of(analysis, work.ome_labels)


def ranges(plan: Plan | Made) -> list[range] | None:
    """Tell what the parts of a slide are; None of a photo, which is done."""
    return plan.parts if isinstance(plan, Plan) else None


def part(work: Work, plan: Plan, k: int) -> list[Sighting]:
    """Find and classify the cells of one part of a slide."""
    if not work.item.path.is_dir():  # a slide of a hundred thousand files is checked when it begins and ends
        check_same(work.item, dict(work.before))
    classifier = _classifier(work.model, work.sha256, work.device)
    seen: list[Sighting] = _drained(examine(_slide(work), plan, [plan.parts[k]], classifier))
    return seen


def judged(seen: list[Sighting]) -> int:
    """Count the cells that a part has classified."""
    return sum(cell.probabilities is not None for cell in seen)


def whole(work: Work, plan: Plan, seen: list[list[Sighting]]) -> Made:
    """Put the parts of a slide together, and make its files."""
    slide, classifier = _slide(work), _classifier(work.model, work.sha256, work.device)
    kept, late = once(list(chain.from_iterable(seen)), True)
    judge(slide, plan, late, classifier)
    threshold = classifier.card.threshold if work.settings.threshold is None else work.settings.threshold
    found = assemble(slide, plan, kept, classifier.card, threshold)
    check_same(work.item, dict(work.before))
    return Made.of(of_slide(slide, found, classifier.card, threshold), work.ome_labels)


@dataclass
class _Open:
    """A slide that is being worked on."""

    work: Work
    rank: int
    planned: Any = None
    ranges: list[range] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    futures: set[Any] = field(default_factory=set)
    cells: int = 0

    @property
    def progress(self) -> Progress:
        done = sum(len(self.ranges[k]) for k in self.done)
        return Progress("classifying", done, sum(map(len, self.ranges)))


class Cluster:
    """An engine (`napari_wbc.batch.Engine`) that lets a Dask cluster work; `started` opens it.

    Parameters
    ----------
    client : distributed.Client
    terms : Terms
        Of the run.
    model : str or None
        The model as the user named it.
    """

    def __init__(self, client: Any, terms: Terms, model: str | None) -> None:
        self.client, self.terms, self.model = client, terms, model
        self._open: dict[Input, _Open] = {}
        self._ready: SimpleQueue[tuple[Any, _Open, Callable[[_Open, Any], Iterator[Step]]]] = SimpleQueue()
        self._rank, self._counted = 0, (0, -math.inf)

    @classmethod
    @contextmanager
    def started(
        cls, terms: Terms, model: str | None, *, workers: int | None = None, scheduler: str | None = None
    ) -> Generator[Cluster, None, None]:
        """Start workers on this machine, or use those of a scheduler.

        Parameters
        ----------
        terms, model
            As the class.
        workers : int, optional
            How many processes to start here.
        scheduler : str, optional
            Address of a running scheduler, ``tcp://host:8786``.

        Raises
        ------
        ClusterError
            If Dask is not installed, or no scheduler answers.
        """
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise ClusterError('workers need Dask: pip install "napari-wbc[batch]"') from error
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is told by the run itself
        local = None
        before = dict(os.environ)
        try:
            if scheduler is None:
                n = workers or 1
                threads = str(max(1, (os.cpu_count() or 1) // n))
                env = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
                local = LocalCluster(
                    n_workers=n, threads_per_worker=1, dashboard_address=None, env=env, silence_logs=logging.CRITICAL
                )
            client = Client(local or scheduler, timeout=_ANSWER, set_as_default=False)
        except (OSError, ValueError, RuntimeError) as error:
            if scheduler is None:
                raise ClusterError(f"no workers can be started here ({error})") from error
            raise ClusterError(f"no scheduler answers at {scheduler}; start one with: dask scheduler") from error
        finally:
            # Dask leaves what it tells its workers of threads in the environment of this process too.
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)
        try:
            yield cls(client, terms, model)
        finally:
            with suppress(Exception):  # a cluster that is gone cannot be closed
                client.close(timeout=5)
            if local is not None:
                with suppress(Exception):
                    local.close(timeout=10)

    def analyses(self, items: Iterable[Input]) -> Iterator[Step]:
        """As `napari_wbc.batch.Engine`."""
        waiting, more = iter(items), True
        try:
            while more or self._open:
                while more and len(self._open) < self._workers() + _AHEAD:
                    item = next(waiting, None)
                    more = item is not None
                    if item is not None:
                        yield from self._begin(item)
                yield from self._next()
        finally:
            for slide in list(self._open.values()):
                self._close(slide)

    def _workers(self) -> int:
        """How many there are; asked every few seconds, for they come and go."""
        n, asked = self._counted
        if time.monotonic() - asked > _OFTEN * 4:
            try:
                n = len(self.client.nthreads())
            except (OSError, TimeoutError, RuntimeError) as error:
                raise _gone(self.client) from error
            self._counted = n, time.monotonic()
        return n

    def _next(self) -> Iterator[Step]:
        """Wait a moment for one result."""
        try:
            future, slide, then = self._ready.get(timeout=_OFTEN)
        except Empty:
            if self.client.status not in ("running", "connecting"):
                raise _gone(self.client) from None
            return
        if slide.work.item not in self._open or future not in slide.futures:
            return  # it failed meanwhile
        if future.status == "finished":
            slide.futures.discard(future)
            yield from then(slide, future.result())
        elif future.status == "error":
            self._close(slide)
            yield Step(slide.work.item, _reason(future.exception()))
        else:
            raise _gone(self.client)

    def _begin(self, item: Input) -> Iterator[Step]:
        try:
            before = tuple(fingerprint(item.path).items())
        except OSError:
            yield Step(item, ImageError("the file was deleted or moved; put it back and run again"))
            return
        item = replace(item, path=item.path.absolute())
        terms = self.terms
        work = Work(item, before, terms.settings, self.model, terms.card.sha256, terms.device, terms.ome_labels)
        slide = self._open[item] = _Open(work, self._rank)
        self._rank += 1
        slide.planned = self._submit(slide, None, look, work)
        self._submit(slide, Cluster._planned, ranges, slide.planned)
        yield Step(item, Progress("looking for white cells" if self._workers() else "waiting for a worker"))

    def _submit(
        self, slide: _Open, then: Callable[..., Iterator[Step]] | None, task: Callable[..., Any], *args: Any
    ) -> Any:
        """Hand out a task; its result is given to ``then``, or stays where it was made for other tasks."""
        # Slides that were begun first end first: memory holds few. Not pure: the same file may have changed.
        future = self.client.submit(task, *args, priority=-slide.rank, pure=False)
        slide.futures.add(future)
        if then is not None:
            self._when(slide, future, then)
        return future

    def _when(self, slide: _Open, future: Any, then: Callable[..., Iterator[Step]]) -> None:
        future.add_done_callback(lambda done: self._ready.put((done, slide, partial(then, self))))

    def _planned(self, slide: _Open, found: list[range] | None) -> Iterator[Step]:
        if found is None:
            self._when(slide, slide.planned, Cluster._made)
            return
        slide.ranges = found
        for k in range(len(found)):
            slide.parts.append(self._submit(slide, None, part, slide.work, slide.planned, k))
            # Where the part is: its cells need not travel to be counted.
            self._submit(slide, partial(Cluster._seen, k=k), judged, slide.parts[k])
        yield Step(slide.work.item, slide.progress)
        if not found:
            self._submit(slide, Cluster._made, whole, slide.work, slide.planned, [])

    def _seen(self, slide: _Open, cells: int, *, k: int) -> Iterator[Step]:
        slide.done.add(k)
        slide.cells += cells
        yield Step(slide.work.item, slide.progress, slide.cells)
        if len(slide.done) == len(slide.ranges):
            self._submit(slide, Cluster._made, whole, slide.work, slide.planned, slide.parts)

    def _made(self, slide: _Open, made: Made) -> Iterator[Step]:
        self._close(slide)
        yield Step(slide.work.item, made, made.facts["cells"])

    def _close(self, slide: _Open) -> None:
        self._open.pop(slide.work.item, None)
        left, slide.futures = slide.futures, set()
        if left:
            with suppress(Exception):  # a cluster that is gone has nothing to cancel
                self.client.cancel(list(left), force=True)
        slide.planned, slide.parts = None, []


def _reason(error: BaseException | None) -> Exception:
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return ClusterError("the workers that had it ended again and again, perhaps for want of memory; give them more")
    return error if isinstance(error, Exception) else ClusterError(str(error))


def _gone(client: Any) -> ClusterError:
    address = getattr(client.scheduler, "address", None) or "its address"
    return ClusterError(f"the scheduler at {address} is gone; start it again, then run the same command: it goes on")
