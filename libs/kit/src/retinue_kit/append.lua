-- Appends a batch of entries to a fenced stream and publishes them, or does neither: what is refused is not heard.
-- Repeating a batch after a lost reply is harmless. Only an opener may create the stream, so that a former holder cannot
-- revive one that has expired.
-- KEYS[1] stream, KEYS[2] channel
-- A stream that lacks what its holder has told is gone for it, whatever was told there since: it was lost and made anew,
-- and what is told in it only until the next commit has to be told again.
-- ARGV: open (0 no, 1 a claim's first batch, 2 facts already committed), token, seconds to live, lowest token to
--       keep (0: keep all), n of the last entry that the caller knows to be there (-1: none), then n and value of each.
local exists = redis.call('EXISTS', KEYS[1]) == 1
if ARGV[1] == '0' and not exists then return 'GONE' end
local top = '0-0'
if exists then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then top = info[i + 1] end
  end
end
local top_token, top_n = string.match(top, '(%d+)-(%d+)')
top_token, top_n = tonumber(top_token), tonumber(top_n)
local token = tonumber(ARGV[2])
if top_token > token then return 'STALE' end
local told = tonumber(ARGV[5])
if ARGV[1] == '0' and told >= 0 and (top_token < token or top_n < told) then return 'GONE' end
for i = 6, #ARGV, 2 do
  if top_token < token or tonumber(ARGV[i]) > top_n then
    local id = ARGV[2] .. '-' .. ARGV[i]
    if ARGV[1] == '1' and i == 6 and ARGV[4] ~= '0' then
      redis.call('XADD', KEYS[1], 'MINID', ARGV[4], id, 'e', ARGV[i + 1])
    else
      redis.call('XADD', KEYS[1], id, 'e', ARGV[i + 1])
    end
    redis.call('PUBLISH', KEYS[2], id .. ' ' .. ARGV[i + 1])
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 'OK'
