set local search_path = router;

-- What a contact's thread file lacks: messages of its log after a cursor, in order. Empty where the log is gone.
create function thread_1(t text, p_log text, p_token bigint, p_n int, p_limit int)
returns table (token bigint, n int, type text, session_id text, run_id text, data jsonb, "time" timestamptz) language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  return query select e.token, e.n, e.type, e.session_id, e.run_id, e.data, e.time from events e
    where e.tenant_id = t and e.log_id = p_log and e.type in ('user.message', 'assistant.message')
      and (e.token, e.n) > (p_token, p_n)
    order by e.token, e.n limit p_limit;
end $$;
