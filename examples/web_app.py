"""A web application that hands its work to a fleet. It answers at once with a job's id, and later with the result.

    pip install fastapi uvicorn pillow
    python examples/web_app.py                      # server and fleet together, until Ctrl-C. Or each by itself:

    uvicorn --app-dir examples web_app:app          # the server alone: it accepts jobs, which do not run yet
    taskq worker examples/web_app.py:q              # the fleet: stop and start it as you like; the server keeps running

    curl --data-binary @photo.jpg http://127.0.0.1:8000/thumbnails     # {"job":"0198c2...","state":"queued"}
    curl http://127.0.0.1:8000/jobs/0198c2...                          # {"job":..., "state":"succeeded",...}
    curl http://127.0.0.1:8000/jobs/0198c2.../result > thumbnail.jpg   # waits until it is there

Once the server has answered with a job's id, the job will run: uploads that arrive while no fleet runs are kept
on disk, in the spool, and the next fleet runs them. Whoever uploads a file that is not an image gets a clear
answer, and nobody else is affected.
"""

import argparse
from contextlib import suppress
from io import BytesIO

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image, ImageOps

from taskq import (
    BrokerUnavailable,
    ConfigError,
    EnqueueError,
    JobFailed,
    JobNotFound,
    ResultTimeout,
    TaskQ,
    TaskQError,
)

#: taskq itself takes up to 1 GiB.
MAX_IMAGE_BYTES = 4_000_000

q = TaskQ("web_app")
app = FastAPI(title="Thumbnails")


@q.task(retries=0, timeout=30)
def thumbnail(image: bytes, size: int = 256) -> bytes:
    """Makes a thumbnail. It runs in a consumer, so the server's event loop stays free for requests."""
    with Image.open(BytesIO(image)) as picture:
        picture.thumbnail((size, size))
        made = BytesIO()
        ImageOps.exif_transpose(picture).convert("RGB").save(made, "JPEG", quality=85)
    return made.getvalue()


@app.post("/thumbnails", status_code=202)
async def upload(request: Request, size: int = 256) -> dict[str, str]:
    """Accepts an image. When this answers, the job is on disk."""
    image = await request.body()
    if len(image) > MAX_IMAGE_BYTES:
        raise HTTPException(413, f"the image has more than {MAX_IMAGE_BYTES:,} bytes")
    job = await thumbnail.aenqueue(image, size=size)
    return {"job": job.id, "state": "queued"}


@app.get("/jobs/{job_id}")
async def state(job_id: str) -> dict[str, object]:
    """Returns the state of a job, and why it failed if it did."""
    info = await q.job(job_id).ainfo()
    error = f"{info.error.type}: {info.error.message}" if info.error else None
    return {"job": job_id, "state": info.state, "attempts": info.attempts, "error": error}


@app.get("/jobs/{job_id}/result")
async def result(job_id: str, wait: float = 10) -> Response:
    """Answers with the thumbnail as soon as it is there. A thousand requests can wait at once, since nothing polls."""
    return Response(await q.job(job_id).aresult(timeout=wait), media_type="image/jpeg")


STATUS_OF = {
    JobNotFound: 404,
    ConfigError: 404,  # this is not a job id
    JobFailed: 422,
    EnqueueError: 503,  # the queue or the disk is full
    BrokerUnavailable: 503,
    ResultTimeout: 504,
}


@app.exception_handler(TaskQError)
def explain(_: Request, error: TaskQError) -> JSONResponse:
    """Turns the errors of taskq into responses, in one place. Tracebacks belong in the log, not in a response."""
    told = f"{error.error_type}: {error.error_message}" if isinstance(error, JobFailed) else str(error)
    status = next((status for kind, status in STATUS_OF.items() if isinstance(error, kind)), 500)
    return JSONResponse({"error": told}, status)


def main() -> None:
    """Runs the server, with a fleet of its own, until Ctrl-C."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port")
    options = parser.parse_args()
    with q.fleet(), suppress(KeyboardInterrupt):
        uvicorn.run(app, host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
