"""Orders come in at a web application, and two machines write the invoices. One PostgreSQL holds the jobs.

    docker compose up --build        # in this folder: the database, two fleets and the web application
    curl -X POST http://127.0.0.1:8000/orders/1      # {"job":"0198c2...","state":"queued"}
    curl http://127.0.0.1:8000/jobs/0198c2...        # {"job":..., "state":"succeeded","invoice":...}
    docker compose kill fleet-a      # its invoices are written by the other one

The same by hand, without Docker, is in docs/postgresql.md.
"""

import os
import socket
import time

from fastapi import FastAPI, HTTPException

from taskq import BrokerUnavailable, JobNotFound, JobState, TaskQ

q = TaskQ("shop")
app = FastAPI(title="Shop")


@q.task(timeout=60)
def write_invoice(order: int) -> str:
    """Takes 50 ms, and says on which machine it was written."""
    time.sleep(0.05)
    return f"invoice {order}, written by {os.environ.get('MACHINE') or socket.gethostname()}"


@app.post("/orders/{order}", status_code=202)
async def take_order(order: int) -> dict[str, str]:
    """Accepts an order. When this answers, the job is in the database."""
    try:
        job = await write_invoice.aenqueue(order)
    except BrokerUnavailable as error:
        raise HTTPException(503, str(error)) from error
    return {"job": job.id, "state": "queued"}


@app.get("/jobs/{job_id}")
async def look(job_id: str) -> dict[str, str]:
    """What has become of an order."""
    job = q.job(job_id)
    try:
        state = await job.astate()
        found = {"job": job_id, "state": str(state.value)}
        return found | ({"invoice": await job.aresult()} if state is JobState.SUCCEEDED else {})
    except JobNotFound as error:
        raise HTTPException(404, str(error)) from error
