// TensorBoard tells the pages of its plugins through a message channel when it has read the logs anew.

/** Call on every reload of TensorBoard, by its button or by its timer. */
export function followReload(reload) {
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    const { type, id, isReply } = JSON.parse(event.data);
    if (isReply) return;
    // The host waits for an answer to each message.
    channel.port1.postMessage(JSON.stringify({ type, id, payload: null, error: null, isReply: true }));
    if (type === "experimental.DataReloaded") reload();
  };
  try {
    window.parent.postMessage("experimental.bootstrap", "*", [channel.port2]);
  } catch {
    // A page that is not inside TensorBoard is reloaded by hand.
  }
}
