"""On Ray, where the extra is installed: what replicas are told, one that is killed, and a file through Ray Data."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from bild.errors import InputError

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and deprecations of its own behind.
    pytest.mark.filterwarnings("ignore"),
]
LINES = int(os.environ.get("BILD_RAY_LINES", "2000"))


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    pair.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_options_are_those_of_bild_serve():
    from bild.serving.ray import app, parse_replicas

    assert parse_replicas("2") == (2, 2) and parse_replicas("1:4") == (1, 4)
    for wrong in ("0", "3:1", "many", "1:2:3", ""):
        with pytest.raises(InputError, match="write a number from 1 on, or two as in 1:4"):
            parse_replicas(wrong)
    with pytest.raises(InputError, match="colour"):
        app({"colour": "red"})
    with pytest.raises(InputError, match="max_rows is 'many'"):
        app({"max_rows": "many"})
    made = app({"max_rows": "3", "queue": "7", "replicas": "1:4", "translate": "de:en"})
    deployment = made._bound_deployment
    assert deployment._deployment_config.max_ongoing_requests == 10
    assert deployment._deployment_config.autoscaling_config.max_replicas == 4
    assert deployment._deployment_config.autoscaling_config.target_ongoing_requests == 3


@pytest.fixture(scope="module")
def start(cluster, folder):
    """Serves the toy pair; in place of what was served before."""
    from ray import serve

    from bild.serving.plan import plan
    from bild.serving.ray import application

    port = 18_000 + os.getpid() % 1000
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    planned = plan(pair=folder, runtime="eager", dtype="float32", model_name="toy", max_rows=2, translate=["de:en"])

    def started(**options) -> str:
        serve.run(application(planned, drain_s=5, **options), name="bild", route_prefix="/")
        return f"http://127.0.0.1:{port}"

    yield started
    serve.shutdown()


def processes() -> set[int]:
    """The ids of the replicas' processes."""
    from ray import serve

    handle = serve.get_app_handle("bild")
    return {handle.process.remote().result(timeout_s=20) for _ in range(30)}


def wait_for(count: int, seconds: float = 60) -> set[int]:
    end = time.monotonic() + seconds
    while len(found := processes()) != count:
        assert time.monotonic() < end, f"there are {len(found)} replicas, not {count}"
        time.sleep(1)
    return found


def test_the_api_is_that_of_one_server(start, pair):
    import openai

    url = start(replicas="2")
    expected = pair.generate("w7 w8 w9", max_new_tokens=12)[0].text
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(model="toy", prompt="w7 w8 w9", max_tokens=12)
        stream = client.completions.create(model="toy", prompt="w7 w8 w9", max_tokens=12, stream=True)
        pieces = [chunk.choices[0].text for chunk in stream]
        assert answer.choices[0].text == "".join(pieces) == expected and len(pieces) > 2
        with pytest.raises(openai.BadRequestError, match="did you mean temperature"):
            client.completions.create(model="toy", prompt="w7", extra_body={"temprature": 1})


def test_replicas_follow_the_load(start, pair):
    import httpx2 as httpx

    quick = {"upscale_delay_s": 0.5, "downscale_delay_s": 3, "look_back_period_s": 2, "metrics_interval_s": 0.5}
    url = start(replicas="1:2", scaling=quick)
    wait_for(1)
    body = {"model": "toy", "prompt": "w7 w8 w9", "max_tokens": 60, "ignore_eos": True}
    statuses: list[int] = []

    async def ask(client: httpx.AsyncClient, done: asyncio.Event) -> None:
        while not done.is_set():
            statuses.append((await client.post(f"{url}/v1/completions", json=body)).status_code)

    async def run() -> None:
        done = asyncio.Event()
        async with httpx.AsyncClient(timeout=120) as client:
            load = [asyncio.create_task(ask(client, done)) for _ in range(12)]
            try:
                # Until a second one has loaded its pair.
                await asyncio.to_thread(wait_for, 2, 150)
            finally:
                done.set()
                await asyncio.gather(*load)

    asyncio.run(run())
    assert set(statuses) == {200}
    wait_for(1)


def test_a_killed_replica_takes_only_its_own_requests_along(start, pair):
    import httpx2 as httpx

    served = start(replicas="2")
    wait_for(2)
    text = "w7 w8 w9"
    expected = pair.generate(text, "exact", max_new_tokens=12)[0].text
    body = {"model": "toy", "prompt": text, "max_tokens": 12, "policy": "exact"}
    before = processes()
    assert len(before) == 2
    ends: list[tuple[float, bool]] = []
    killed = 0.0

    async def ask(client: httpx.AsyncClient, until: float) -> None:
        while time.monotonic() < until:
            try:
                answer = await client.post(f"{served}/v1/completions", json=body)
                fine = answer.status_code == 200
                assert not fine or answer.json()["choices"][0]["text"] == expected
            except httpx.HTTPError:
                fine = False
            ends.append((time.monotonic(), fine))

    async def run() -> None:
        nonlocal killed
        async with httpx.AsyncClient(timeout=20) as client:
            load = [asyncio.create_task(ask(client, time.monotonic() + 20)) for _ in range(6)]
            await asyncio.sleep(4)
            os.kill(min(before), signal.SIGKILL)
            killed = time.monotonic()
            await asyncio.gather(*load)

    asyncio.run(run())
    lost = [at for at, fine in ends if not fine]
    # Six were open between two replicas; who was asked next found the other one.
    assert len(lost) <= 6 and all(killed <= at <= killed + 10 for at in lost), [at - killed for at in lost]
    assert sum(fine for _, fine in ends) > 20
    after = wait_for(2)
    assert min(before) not in after and before & after


def test_a_file_through_ray_data_is_the_file_through_one_process(cluster, folder, pair, tmp_path):
    from bild.serving.ray import translate_file

    texts = ["w7 w8", "", "w3 w4 w5", "w20 w21 w22 w23"]
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(f"{texts[at % 4]}\n" for at in range(LINES)), encoding="utf-8")
    loaded = {"pair": folder, "runtime": "eager", "dtype": "float32", "rows": 32, "options": {"max_new_tokens": 6}}
    told = translate_file(str(source), str(target), actors=2, batch_size=64, **loaded)
    expected = {text: pair.generate(text, max_new_tokens=6)[0].text if text else "" for text in texts}
    assert target.read_text(encoding="utf-8").splitlines() == [expected[texts[at % 4]] for at in range(LINES)]
    assert told == (LINES, 0)
