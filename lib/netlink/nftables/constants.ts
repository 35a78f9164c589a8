/**
 * The numbers of nf_tables' netlink protocol: linux/netfilter/nf_tables.h, each under its name there.
 *
 * @module
 */

/** Marks of a transaction (linux/netfilter/nfnetlink.h). */
export const NFNL_MSG_BATCH = { BEGIN: 0x10, END: 0x11 } as const;

/** The attribute of a transaction's first mark: the generation that it is for, in network order. */
export const NFNL_BATCH_GENID = 1;

/** libnftnl/udata.h: the same number for tables, rules and elements. */
export const NFTNL_UDATA_COMMENT = 0;

export const NFT_MSG = {
  NEWTABLE: 0,
  GETTABLE: 1,
  DELTABLE: 2,
  NEWCHAIN: 3,
  GETCHAIN: 4,
  DELCHAIN: 5,
  NEWRULE: 6,
  GETRULE: 7,
  DELRULE: 8,
  NEWSET: 9,
  GETSET: 10,
  DELSET: 11,
  NEWSETELEM: 12,
  GETSETELEM: 13,
  DELSETELEM: 14,
  NEWGEN: 15,
  GETGEN: 16,
} as const;

export const NFTA_TABLE = { NAME: 1 } as const;
export const NFTA_GEN = { ID: 1, PROC_PID: 2, PROC_NAME: 3 } as const;
export const NFTA_CHAIN = { TABLE: 1, NAME: 3, HOOK: 4, POLICY: 5, TYPE: 7 } as const;
export const NFTA_HOOK = { HOOKNUM: 1, PRIORITY: 2 } as const;
export const NFTA_RULE = { TABLE: 1, CHAIN: 2, HANDLE: 3, EXPRESSIONS: 4, USERDATA: 7 } as const;
export const NFTA_SET_ELEM_LIST = { TABLE: 1, SET: 2, ELEMENTS: 3 } as const;
export const NFTA_SET_ELEM = {
  KEY: 1,
  DATA: 2,
  FLAGS: 3,
  USERDATA: 6,
  EXPR: 7,
  KEY_END: 10,
} as const;
export const NFTA_EXPR = { NAME: 1, DATA: 2 } as const;
export const NFTA_CONNLIMIT = { COUNT: 1, FLAGS: 2 } as const;
export const NFTA_LIMIT = { RATE: 1, UNIT: 2, BURST: 3, FLAGS: 5 } as const;
/** NFT_SET_ELEM_INTERVAL_END. */
export const INTERVAL_END = 1;
/** NFT_CONNLIMIT_F_INV and NFT_LIMIT_F_INV: the rule goes on where the limit is exceeded. */
export const OVER = 1;
export const NFTA_LIST_ELEM = 1;
export const NFTA_DATA = { VALUE: 1, VERDICT: 2 } as const;
export const NFTA_IMMEDIATE = { DREG: 1, DATA: 2 } as const;
export const NFTA_VERDICT = { CODE: 1, CHAIN: 2 } as const;

/** NF_DROP of linux/netfilter.h, and NFT_RETURN. */
export const VERDICTS: Readonly<Record<string, number>> = { drop: 0, return: 0xffff_fffb };

/** Jumps of a rule, beside the verdicts of {@linkcode NF}. */
export const NFT_VERDICT = { JUMP: 0xffff_fffd, GOTO: 0xffff_fffc } as const;

/** linux/netfilter.h. */
export const NF = {
  DROP: 0,
  ACCEPT: 1,
  INET_PRE_ROUTING: 0,
  INET_FORWARD: 2,
  INET_POST_ROUTING: 4,
} as const;
export const NFPROTO = { inet: 1, ip: 2, arp: 3, netdev: 5, bridge: 7, ip6: 10 } as const;
