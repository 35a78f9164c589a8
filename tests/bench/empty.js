// What any script of Deno's takes: see contestant.ts.
