"""The kinds of this project's worker under comparison: `pgqueue-ref worker --app handlers:kinds` in this directory."""

from gate import Gate

from pgqueue_ref.worker import Job, Kinds

gate = Gate.of_worker()
kinds = Kinds()


@kinds.register("noop", terminal_ttl=0)
async def noop(job: Job) -> None:
    await gate.handle(job.payload)


gate.cross()
