// An SMSC on the `smpp` package, driven by lines of JSON: commands on the input, what happened on the output.
// Ends with its input. Listens on a free port of the loopback address.
"use strict";
const smpp = require("smpp");
const readline = require("node:readline");

const tell = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const hex = (value) => (Buffer.isBuffer(value) ? value.toString("hex") : null);
// status: of every submit_sm_resp; receipts: null, "text" or "tlv", with the ids of responses in decimal.
let behaviour = { status: 0, receipts: null, state: "DELIVRD", password: "secret" };
let session = null;
let count = 0xab0;

const STATES = { DELIVRD: 2, EXPIRED: 3, UNDELIV: 5, REJECTD: 8 };

function receipt(id, mobile, state, kind) {
  const fields = {
    source_addr_ton: 1, source_addr_npi: 1, source_addr: mobile, destination_addr: "ACME", esm_class: 4, data_coding: 0,
  };
  if (kind === "tlv") {
    fields.receipted_message_id = id;
    fields.message_state = STATES[state];
    fields.short_message = "";
  } else {
    const date = "2601021530";
    fields.short_message =
      `id:${id} sub:001 dlvrd:001 submit date:${date} done date:${date} stat:${state} err:000 text:id:1 stat:ENROUTE`;
  }
  session.deliver_sm(fields, (pdu) => tell({ event: "receipt", id, status: pdu.command_status }));
}

function submitted(pdu) {
  const id = (++count).toString(16).toUpperCase();
  tell({
    event: "submit", text: pdu.short_message.message, udh: (pdu.short_message.udh || []).map(hex),
    to: pdu.destination_addr, from: pdu.source_addr, source_ton: pdu.source_addr_ton, to_ton: pdu.dest_addr_ton,
    coding: pdu.data_coding, esm_class: pdu.esm_class, wanted: pdu.registered_delivery,
    sar: [pdu.sar_msg_ref_num, pdu.sar_total_segments, pdu.sar_segment_seqnum],
  });
  session.send(pdu.response({ command_status: behaviour.status, message_id: behaviour.status ? "" : id }));
  if (!behaviour.status && behaviour.receipts && pdu.registered_delivery) {
    receipt(String(parseInt(id, 16)), pdu.destination_addr, behaviour.state, behaviour.receipts);
  }
}

const server = smpp.createServer((opened) => {
  opened.on("bind_transceiver", (pdu) => {
    const status = pdu.password === behaviour.password ? 0 : smpp.ESME_RINVPASWD;
    opened.send(pdu.response({ command_status: status, system_id: "node" }));
    if (status === 0) session = opened;
    tell({ event: "bind", system_id: pdu.system_id, version: pdu.interface_version, status });
  });
  opened.on("submit_sm", submitted);
  opened.on("enquire_link", (pdu) => opened.send(pdu.response()));
  opened.on("unbind", (pdu) => {
    tell({ event: "unbind" });
    opened.send(pdu.response());
    opened.close();
  });
  opened.on("error", (error) => tell({ event: "error", error: String(error.message) }));
});
server.listen(0, "127.0.0.1", () => tell({ event: "listening", port: server.address().port }));

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const command = JSON.parse(line);
  if (command.behave) behaviour = { ...behaviour, ...command.behave };
  if (command.behave) tell({ event: "behaves" });
  if (command.enquire) session.enquire_link((pdu) => tell({ event: "enquired", status: pdu.command_status }));
  if (command.unbind) session.unbind((pdu) => { tell({ event: "unbound", status: pdu.command_status }); session.close(); });
  if (command.receipt) receipt(...command.receipt);
});
lines.on("close", () => process.exit(0));
