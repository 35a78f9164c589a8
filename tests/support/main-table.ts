/**
 * The tables of all guests as messages: made by libnftables in a namespace of its own, and read back
 * from the kernel.
 *
 * @module
 */

import { Nftables } from "../../lib/firewall/libnftables.ts";
import { planTable, type Table } from "../../lib/firewall/table.ts";
import { encodeMessage, NLM_F } from "../../lib/netlink/message.ts";
import { NFGENMSG_LEN, NFNL_SUBSYS, nfnlType, openNetfilter } from "../../lib/netlink/nfnetlink.ts";
import { NFT_MSG, NFTA_CHAIN, NFTA_RULE } from "../../lib/netlink/nftables/constants.ts";
import { beginPayload } from "../../lib/netlink/nftables/objects.ts";
import { Decoder } from "../../lib/netlink/wire.ts";
import { newNetns, withNetns } from "../../lib/sys/netns.ts";

/** linux/netfilter/nf_tables.h. */
const NFTA_SET = {
  TABLE: 1,
  NAME: 2,
  FLAGS: 3,
  KEY_TYPE: 4,
  KEY_LEN: 5,
  DATA_TYPE: 6,
  DATA_LEN: 7,
  DESC: 9,
  ID: 10,
  TIMEOUT: 11,
  EXPR: 17,
} as const;

/** Which attributes make an object; the rest of what is listed is handles and counters. */
const OBJECTS = [
  {
    get: NFT_MSG.GETCHAIN,
    make: NFT_MSG.NEWCHAIN,
    flags: NLM_F.CREATE,
    attributes: [
      ...[NFTA_CHAIN.TABLE, NFTA_CHAIN.NAME, NFTA_CHAIN.HOOK, NFTA_CHAIN.POLICY],
      NFTA_CHAIN.TYPE,
    ],
  },
  {
    get: NFT_MSG.GETSET,
    make: NFT_MSG.NEWSET,
    flags: NLM_F.CREATE,
    attributes: [
      ...[NFTA_SET.TABLE, NFTA_SET.NAME, NFTA_SET.FLAGS, NFTA_SET.KEY_TYPE, NFTA_SET.KEY_LEN],
      ...[NFTA_SET.DATA_TYPE, NFTA_SET.DATA_LEN, NFTA_SET.DESC, NFTA_SET.TIMEOUT, NFTA_SET.EXPR],
    ],
    // The kernel wants a number with which the rest of the transaction could name it.
    numbered: NFTA_SET.ID,
  },
  {
    get: NFT_MSG.GETRULE,
    make: NFT_MSG.NEWRULE,
    flags: NLM_F.CREATE | NLM_F.APPEND,
    attributes: [NFTA_RULE.TABLE, NFTA_RULE.CHAIN, NFTA_RULE.EXPRESSIONS, NFTA_RULE.USERDATA],
  },
] as const;

/** The messages that make the chains, the sets and the rules of a table, of a fingerprint. */
export function compileTable(table: Table, layout: string): Uint8Array<ArrayBuffer> {
  using netns = newNetns();
  using nft = withNetns(netns, () => Nftables.open());
  using nl = withNetns(netns, openNetfilter);
  nft.run(planTable({ ...table, layout }), "make the table");
  const messages = OBJECTS.flatMap(({ get, make, flags, attributes, ...rest }) =>
    nl.dump(nfnlType(NFNL_SUBSYS.NFTABLES, get), beginPayload(table.family).finish())
      .map(({ payload }, index) => {
        const encoder = beginPayload(table.family);
        for (const { type, value } of new Decoder(payload).skip(NFGENMSG_LEN).attributes()) {
          // Some are there without content.
          if (attributes.some((wanted) => wanted === type) && value.remaining > 0) {
            encoder.attrBytes(type, value.asBytes());
          }
        }
        if ("numbered" in rest) encoder.attrU32be(rest.numbered, index + 1);
        const type = nfnlType(NFNL_SUBSYS.NFTABLES, make);
        return encodeMessage({ type, flags, seq: 0, pid: 0, payload: encoder.finish() });
      })
  );
  return new Uint8Array(messages.flatMap((message) => [...message]));
}

/** The fingerprint of a table's layout: FNV-1a over UTF-16 units. */
export function fingerprint({ sets, learnt, chains }: Table): string {
  const text = JSON.stringify(learnt === undefined ? [sets, chains] : [sets, learnt, chains]);
  let hash = 0x811c9dc5;
  for (const character of text) {
    hash = Math.imul(hash ^ character.charCodeAt(0), 0x01000193) >>> 0;
  }
  return hash.toString(16).padStart(8, "0");
}
