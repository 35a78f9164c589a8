/**
 * Tables for people, and the words in them.
 *
 * @module
 */

import type { PortMapping } from "../inet/ports.ts";
import { type Paint, plain, type Style } from "./style.ts";

/** A cell: its text, and its style. */
export type Cell = string | readonly [text: string, style: Style];

/** Columns with two spaces between, without any after the last. */
export function formatTable(rows: readonly (readonly Cell[])[], paint: Paint = plain): string[] {
  const texts = rows.map((row) => row.map((cell) => typeof cell === "string" ? cell : cell[0]));
  const width = (column: number) =>
    Math.max(0, ...texts.map((row) => plain(row[column] ?? "", "bold").length));
  return rows.map((row) =>
    row.map((cell, column) => {
      const [text, style] = typeof cell === "string" ? [cell, undefined] : cell;
      const shown = style === undefined ? plain(text, "bold") : paint(text, style);
      const isLast = column === row.length - 1;
      const gap = isLast ? 0 : width(column) + 2 - plain(text, "bold").length;
      return shown + " ".repeat(gap);
    }).join("").trimEnd()
  );
}

/** The time since, in the largest unit that fits: `"5s"`, `"3m"`, `"2h"`, `"4d"`. */
export function formatAge(since: string, now: number = Date.now()): string {
  const seconds = Math.max(0, Math.floor((now - Date.parse(since)) / 1000));
  const [unit, length] = UNITS.find(([, length]) => seconds >= length) ?? ["s", 1];
  return `${Math.floor(seconds / length)}${unit}`;
}

const UNITS = [["d", 86_400], ["h", 3600], ["m", 60]] as const;

/** More ports than this are counted only. */
const MOST_PORTS = 4;

/**
 * Ports as `--ports` takes them, as short as they can be: `"8080:80, 127.0.0.1:53:53/udp"`. One of all
 * addresses of both families is told once.
 */
export function shortPorts(ports: readonly PortMapping[]): string {
  const all = [...new Set(ports.map(shortPort))];
  const more = all.length - MOST_PORTS;
  return [...all.slice(0, MOST_PORTS), ...more > 0 ? [`+${more}`] : []].join(", ");
}

function shortPort({ hostIP, hostPort, vmPort, protocol, range = 1 }: PortMapping): string {
  const address = ["", "0.0.0.0", "::"].includes(hostIP)
    ? ""
    : hostIP.includes(":")
    ? `[${hostIP}]:`
    : `${hostIP}:`;
  const numbers = (first: number) => range > 1 ? `${first}-${first + range - 1}` : `${first}`;
  const suffix = protocol === "tcp" ? "" : `/${protocol}`;
  return `${address}${numbers(hostPort)}:${numbers(vmPort)}${suffix}`;
}
