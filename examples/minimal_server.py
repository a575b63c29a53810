"""A server of one's own in twenty lines.

Pack a model first, then run it beside this file's tis.yaml:

    tessera pack --from-hf CHECKPOINT --out model.tspkg
    python minimal_server.py
    curl localhost:8080/v1/chat/completions -H 'content-type: application/json' \
         -d '{"model": "model", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
"""

from tessera import dist, graph, op, runtime, server  # noqa: F401

app = server.App(config="tis.yaml")


@app.model("model.tspkg")
def load_model(pkg):
    mod = server.load_package(pkg)  # opens Graph IR + weights, and checks every byte
    graph.capture(mod.entry, bucket_by=["seq_len"])
    return mod


@app.route("/v1/chat/completions", stream=True)
def chat(req):
    sched = server.scheduler(policy="continuous_batch", target_p99_ms=150)
    with sched.session(model="model") as sess:
        yield from sess.generate(req.messages, max_tokens=req.max_tokens)


if __name__ == "__main__":
    app.run()
