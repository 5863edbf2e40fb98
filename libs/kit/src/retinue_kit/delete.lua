-- Removes from a fenced stream what was told under tokens up to a limit, and keeps what is still on its way under them
-- out. What a later token has told meanwhile stays: whoever removes a conversation may be slower than who begins it anew.
-- KEYS[1] stream
-- ARGV: highest token that goes (0: all of the stream, without a trace), seconds to live, id of the entry that must be
--       the last one told (empty: whichever is).
local exists = redis.call('EXISTS', KEYS[1]) == 1
local top = '0-0'
if exists then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then top = info[i + 1] end
  end
end
if ARGV[3] ~= '' and ARGV[3] ~= top then return 0 end
if ARGV[1] == '0' then return redis.call('DEL', KEYS[1]) end
local through = tonumber(ARGV[1])
local top_token, top_n = string.match(top, '(%d+)-(%d+)')
if tonumber(top_token) > through then
  return redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f-0', through + 1))
end
local last = ARGV[1] .. '-9007199254740991'
if top ~= last then redis.call('XADD', KEYS[1], last, 'e', '') end
redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', 0)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
