// Pages opened as files may not start workers, but the search of the theme wants one: there it runs in a hidden frame
// instead. The offline plugin looks for this file's name, and would load another from the network in its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const base = new URL(address, document.baseURI);
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!DOCTYPE html>";
      this.started = new Promise((resolve) => {
        frame.addEventListener("load", async () => {
          const scope = frame.contentWindow;
          const run = (url) => new Promise((done, failed) => {
            const script = scope.document.createElement("script");
            script.src = new URL(url, base);
            script.onload = done;
            script.onerror = () => failed(new Error(`${script.src} cannot be loaded`));
            scope.document.head.append(script);
          });
          // The scripts of a worker are loaded in order; the search waits for the promise.
          scope.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => run(url)), Promise.resolve());
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", {data}));
          await run(base);
          resolve(scope);
        });
      });
      document.body.append(frame);
    }

    postMessage(data) {
      this.started.then((scope) => scope.dispatchEvent(new MessageEvent("message", {data})));
    }
  };
}
