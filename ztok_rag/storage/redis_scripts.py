"""The scripts that a Redis store runs in the server, so that each change is whole or not made.

The names of all keys begin with the store's prefix, `KEYS[1]`:

- `:text:HASH` is a hash of the entries of a text: kind → value.
- `:kind:KIND` is a sorted set of the hashes that have an entry of this kind, by when it was used
  last. Its score is `inf` where the text is pinned. It is what entries are counted, listed and
  evicted by.
- `:kinds` is the set of kinds, `:bytes` the bytes of all values, `:tick` the number of uses.
- `:pins:OWNER` is the set of hashes that an index pins, `:pinned` a hash: how many pin each.
- `:secret` and `:format` are strings.

HASH is 32 bytes. Names are made inside the scripts, which Redis Cluster does not allow.
"""

from __future__ import annotations

_COMMON = """
local P = KEYS[1]
local function text(h) return P .. ':text:' .. h end
local function kind(k) return P .. ':kind:' .. k end
local function pinners(h) return tonumber(redis.call('HGET', P .. ':pinned', h) or '0') end
local function use() return redis.call('INCR', P .. ':tick') end

local function drop(h, k)
  local size = redis.call('HSTRLEN', text(h), k)
  if redis.call('HDEL', text(h), k) == 0 then return 0 end
  redis.call('DECRBY', P .. ':bytes', size)
  redis.call('ZREM', kind(k), h)
  if redis.call('EXISTS', kind(k)) == 0 then redis.call('SREM', P .. ':kinds', k) end
  return 1
end

local function drop_text(h)
  local n = 0
  for _, k in ipairs(redis.call('HKEYS', text(h))) do n = n + drop(h, k) end
  return n
end

local function rescore(h, score)
  for _, k in ipairs(redis.call('HKEYS', text(h))) do redis.call('ZADD', kind(k), score, h) end
end
"""

# Arguments: "1" to replace, the limit in bytes or "-1", then hash, kind and value of each entry.
# Returns what was there before and stays, or false, for each entry.
PUT = (
    _COMMON
    + """
local replace, limit = ARGV[1] == '1', tonumber(ARGV[2])
local found = {}
local now = use()
for i = 3, #ARGV, 3 do
  local h, k, v = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local old = redis.call('HGET', text(h), k)
  if old and not replace then
    found[#found + 1] = old
  else
    found[#found + 1] = false
    redis.call('HSET', text(h), k, v)
    redis.call('INCRBY', P .. ':bytes', #v - (old and #old or 0))
    redis.call('SADD', P .. ':kinds', k)
    redis.call('ZADD', kind(k), pinners(h) > 0 and '+inf' or now, h)
  end
end
local bytes = tonumber(redis.call('GET', P .. ':bytes') or '0')
local left = 1000  -- to evict by one command, which others wait for
while limit >= 0 and bytes > limit and left > 0 do
  left = left - 1
  local best, of
  for _, k in ipairs(redis.call('SMEMBERS', P .. ':kinds')) do
    local first = redis.call('ZRANGE', kind(k), 0, 0, 'WITHSCORES')
    if first[1] and first[2] ~= 'inf' then
      local score = tonumber(first[2])
      local is_tie = best and score == best.score
      if not best or score < best.score or (is_tie and k < best.k) then
        best = {score = score, h = first[1], k = k}
      end
    end
  end
  if not best then break end
  drop(best.h, best.k)
  bytes = tonumber(redis.call('GET', P .. ':bytes'))
end
return found
"""
)

# Arguments: hash and kind of each entry that was used.
TOUCH = (
    _COMMON
    + """
local now = use()
for i = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', kind(ARGV[i + 1]), ARGV[i])
  if score and score ~= 'inf' then redis.call('ZADD', kind(ARGV[i + 1]), now, ARGV[i]) end
end
"""
)

# Arguments: hash and kind of each entry. Returns how many were there.
DELETE = (
    _COMMON
    + """
local n = 0
for i = 1, #ARGV, 2 do n = n + drop(ARGV[i], ARGV[i + 1]) end
return n
"""
)

# Arguments: "1" to spare what others have pinned, the owner, then hashes. Returns how many entries
# were there.
DELETE_TEXTS = (
    _COMMON
    + """
local n = 0
for i = 3, #ARGV do
  local h, others = ARGV[i], 0
  if ARGV[1] == '1' then
    others = pinners(h) - redis.call('SISMEMBER', P .. ':pins:' .. ARGV[2], h)
  end
  if others <= 0 then n = n + drop_text(h) end
end
return n
"""
)

# Arguments: the owner, then hashes.
PIN = (
    _COMMON
    + """
for i = 2, #ARGV do
  local h = ARGV[i]
  if redis.call('SADD', P .. ':pins:' .. ARGV[1], h) == 1 then
    if redis.call('HINCRBY', P .. ':pinned', h, 1) == 1 then rescore(h, '+inf') end
  end
end
"""
)

UNPIN = (
    _COMMON
    + """
local now = use()
for i = 2, #ARGV do
  local h = ARGV[i]
  if redis.call('SREM', P .. ':pins:' .. ARGV[1], h) == 1 then
    if redis.call('HINCRBY', P .. ':pinned', h, -1) <= 0 then
      redis.call('HDEL', P .. ':pinned', h)
      rescore(h, now)
    end
  end
end
"""
)

# Arguments: hashes. Returns the bytes of their entries.
BYTES = (
    _COMMON
    + """
local n = 0
for _, h in ipairs(ARGV) do
  for _, k in ipairs(redis.call('HKEYS', text(h))) do
    n = n + redis.call('HSTRLEN', text(h), k)
  end
end
return n
"""
)
