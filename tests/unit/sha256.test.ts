import { assertEquals } from "@std/assert";
import { sha256 } from "../../lib/sha256.ts";

Deno.test("sha256: is the platform's, whatever the length", async () => {
  const texts = ["", "web", "ä €", ...Array.from({ length: 200 }, (_, n) => "a".repeat(n))];
  for (const text of texts) {
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
    assertEquals(sha256(text), new Uint8Array(digest).toHex(), `${text.length} characters`);
  }
});
