// What a hostile page tries on a service: to read anything of it, or to make it do anything.
//
// Returns [name, what was learned] for each attempt; null stands for nothing.
async ({ target, batch, order, image }) => {
  const learned = [];
  const note = (name, what) => learned.push([name, what]);
  const within = (promise) => Promise.race([promise, new Promise((done) => setTimeout(done, 4000, null))]);
  const start = `${target}/v1/batches`, cancel = `${start}/${batch}/cancel`, predict = `${target}/v1/models/digits/predict`;
  const json = JSON.stringify(order);
  const paths = ["/", "/docs", "/openapi.json", "/live", "/ready", "/metrics", "/v1/models", "/v1/models/digits/labels",
                 "/v2/models/digits", "/v1/batches", `/v1/batches/${batch}`, `/v1/batches/${batch}/results`, `/v1/batches/${batch}/report`];

  async function read(name, url, options) {
    try {
      const answer = await fetch(url, options);
      const text = await answer.text();
      note(name, answer.type === "opaque" && text === "" ? null : `${answer.status} ${text}`);
    } catch { note(name, null); }
  }
  const form = new FormData();
  form.append("image", new Blob([image]), "a.png");
  const bodies = {
    text: json, bytes: new TextEncoder().encode(json), untyped: new Blob([json]), typed: new Blob([json], { type: "text/plain" }),
    encoded: new URLSearchParams([[json, ""]]), form,
  };
  for (const path of paths)
    for (const mode of ["cors", "no-cors", "same-origin"])
      await read(`fetch ${mode} ${path}`, target + path, { mode, credentials: "include" });
  for (const [kind, body] of Object.entries(bodies))
    for (const mode of ["cors", "no-cors"])
      for (const url of [start, cancel, predict])
        await read(`fetch ${mode} ${kind} ${url}`, url, { method: "POST", mode, body, credentials: "include" });
  for (const type of ["text/plain", "text/plain; application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "application/json"])
    await read(`fetch as ${type}`, start, { method: "POST", mode: "no-cors", body: json, headers: { "content-type": type }, credentials: "include" });
  await read("fetch JSON", start, { method: "POST", body: json, headers: { "content-type": "application/json" }, credentials: "include" });
  await read("fetch with a key", start, { method: "POST", body: json, headers: { authorization: "Bearer er_guess" } });
  for (const method of ["DELETE", "PUT", "PATCH", "OPTIONS"])
    await read(`fetch ${method}`, `${start}/${batch}`, { method, credentials: "include" });
  await read("empty cancel", cancel, { method: "POST", mode: "no-cors", credentials: "include" });
  await read("kept alive", cancel, { method: "POST", mode: "no-cors", keepalive: true, credentials: "include", referrerPolicy: "no-referrer" });

  for (const [method, url, body] of [["GET", `${target}/v1/models`, null], ["POST", start, json], ["POST", cancel, null], ["DELETE", `${start}/${batch}`, null]])
    await within(new Promise((done) => {
      const request = new XMLHttpRequest();
      request.open(method, url);
      request.withCredentials = true;
      request.onloadend = () => { note(`XHR ${method} ${url}`, request.status ? `${request.status} ${request.responseText}` : null); done(); };
      request.send(body);
    }));

  for (const [kind, body] of Object.entries(bodies))
    for (const url of [start, cancel]) {
      try { navigator.sendBeacon(url, body); } catch { /* what asks first is refused here already */ }
      note(`beacon ${kind}`, null);
    }
  try { navigator.sendBeacon(start, new Blob([json], { type: "application/json" })); } catch { /* as above */ }

  async function frame(name, fill) {
    const element = document.createElement("iframe");
    element.name = `frame-${learned.length}`;
    const loaded = new Promise((done) => { element.onload = done; });
    fill(element);
    document.body.append(element);
    if (element.dataset.form) element.dataset.submit = "1";
    await within(loaded);
    await new Promise((done) => setTimeout(done, 100));
    let text = null;
    try { text = element.contentDocument.body.innerText.trim() || null; } catch { /* not ours to read */ }
    if (element.contentWindow?.length) text = `${text} with ${element.contentWindow.length} frames`;
    note(name, text);
    element.remove();
  }
  for (const path of paths) await frame(`frame ${path}`, (element) => { element.src = target + path; });
  for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
    for (const url of [start, cancel, predict])
      await frame(`form ${enctype} ${url}`, (element) => {
        const posted = document.createElement("form");
        Object.assign(posted, { method: "post", action: url, enctype, target: element.name });
        const input = document.createElement("input");
        // As text/plain the body is NAME=VALUE: an object whose last member takes the sign.
        [input.name, input.value] = [`${json.slice(0, -1)},"column":"`, `"}`];
        input.type = "hidden";
        posted.append(input);
        document.body.append(posted);
        setTimeout(() => posted.submit(), 0);
      });

  const embeds = { img: "src", script: "src", link: "href", video: "src", audio: "src", embed: "src", object: "data" };
  for (const [tag, attribute] of Object.entries(embeds))
    for (const path of paths)
      await within(new Promise((done) => {
        const element = document.createElement(tag);
        if (tag === "link") element.rel = "stylesheet";
        element.onload = () => { note(`${tag} ${path}`, tag === "object" || tag === "embed" ? null : "loaded"); done(); };
        element.onerror = () => { note(`${tag} ${path}`, null); done(); };
        element[attribute] = target + path;
        document.body.append(element);
        if (tag === "embed" || tag === "object") setTimeout(done, 50);
      }));
  for (const path of paths)
    try { note(`module ${path}`, `ran ${Object.keys(await import(target + path))}`); } catch { note(`module ${path}`, null); }
  for (const path of ["/", "/v1/models"])
    try { const worker = new Worker(target + path); worker.terminate(); } catch { /* of one's own origin alone */ }

  for (const path of ["/v1/models", "/metrics"])
    await within(new Promise((done) => {
      const events = new EventSource(target + path, { withCredentials: true });
      events.onopen = events.onmessage = () => { note(`EventSource ${path}`, "opened"); events.close(); done(); };
      events.onerror = () => { note(`EventSource ${path}`, null); events.close(); done(); };
    }));
  for (const path of ["/", "/v1/models", `/v1/batches/${batch}/cancel`])
    await within(new Promise((done) => {
      const socket = new WebSocket(target.replace("http", "ws") + path);
      socket.onopen = socket.onmessage = () => { note(`WebSocket ${path}`, "opened"); socket.close(); done(); };
      socket.onerror = () => { note(`WebSocket ${path}`, null); done(); };
    }));

  for (const path of ["/", "/docs", "/v1/models"]) {
    const opened = window.open(target + path);
    await new Promise((done) => setTimeout(done, 400));
    let text = null;
    try { text = opened?.document.body.innerText.trim() || null; } catch { /* not ours to read */ }
    note(`window ${path}`, text);
    opened?.close();
  }
  for (const url of [start, cancel]) {
    const posted = document.createElement("form");
    Object.assign(posted, { method: "post", action: url, enctype: "text/plain", target: "_blank" });
    const input = document.createElement("input");
    [input.name, input.value] = [`${json.slice(0, -1)},"column":"`, `"}`];
    posted.append(input);
    document.body.append(posted);
    posted.submit();
    await new Promise((done) => setTimeout(done, 400));
    note(`window of a form ${url}`, null);
  }
  return learned;
}
