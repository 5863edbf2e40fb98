-- What tenants have allowed their tools for good, and which tool calls of a run are open.
set local search_path = router;

alter table approvals add column pattern text not null default '';      -- what "allow_always" would allow; '': no more than the one call

create table allowances (
  tenant_id text not null, allowance_id text not null,
  tool text not null, pattern text not null,
  digest bytea not null,                        -- of the pattern, which may be longer than what an index holds
  principal text not null,                      -- who allowed it
  create_time timestamptz not null default clock_timestamp(),
  primary key (tenant_id, allowance_id), unique (tenant_id, tool, digest));

alter table router.allowances enable row level security;
alter table router.allowances force row level security;
create policy wall on router.allowances using (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')));
grant select, insert, update, delete on router.allowances to retinue_router;

-- As park_1, with what "allow_always" would allow.
create function park_2(t text, p_log text, p_token bigint, p_run text, ev jsonb, p_checkpoint bytea, p_decision jsonb, p_approval text, p_n int,
  p_call text, p_tool text, p_summary text, p_expire interval, p_pattern text)
returns table (ok bool, events jsonb, ring bool) language plpgsql as $$
declare parked record;
begin
  select * into parked from park_1(t, p_log, p_token, p_run, ev, p_checkpoint, p_decision, p_approval, p_n, p_call, p_tool, p_summary, p_expire);
  if parked.ok then
    update approvals x set pattern = p_pattern where x.tenant_id = t and x.approval_id = p_approval;
  end if;
  return query select parked.ok, parked.events, parked.ring;
end $$;

-- As decide_approval_1; "allow_always" makes an allowance in the same commit. Where there is nothing to allow for good, or
-- no room for it, it counts as "allow_once", and the approval and its event say so.
create function decide_approval_2(t text, p_approval text, p_decision text, p_by text, p_allowance text, p_max int, p_size_max int)
returns table (outcome text, log_id text, ring bool) language plpgsql as $$
declare a approvals; decided record; counts text := p_decision; hash bytea;
begin
  perform set_config('app.tenant_id', t, true);
  select * into a from approvals x where x.tenant_id = t and x.approval_id = p_approval;
  if not found then return; end if;
  if p_decision = 'allow_always' then
    perform from logs x where x.tenant_id = t and x.log_id = a.log_id for no key update;     -- first, as everywhere
    perform pg_advisory_xact_lock(hashtextextended('allowances ' || t, 0));                  -- one at a time of a tenant: the count holds
    hash := sha256(convert_to(a.pattern, 'UTF8'));
    if a.pattern = '' then
      counts := 'allow_once';
    elsif not exists (select from allowances x where x.tenant_id = t and x.tool = a.tool and x.digest = hash)
        and (select count(*) >= p_max or coalesce(sum(octet_length(x.pattern)), 0) + octet_length(a.pattern) > p_size_max
          from allowances x where x.tenant_id = t) then
      counts := 'allow_once';
    end if;
  end if;
  select * into decided from decide_approval_1(t, p_approval, counts, p_by);
  if decided.outcome = 'decided' and counts = 'allow_always' then
    insert into allowances (tenant_id, allowance_id, tool, pattern, digest, principal)
      values (t, p_allowance, a.tool, a.pattern, hash, p_by) on conflict (tenant_id, tool, digest) do nothing;
  end if;
  if decided.outcome is not null then
    return query select decided.outcome, decided.log_id, decided.ring;
  end if;
end $$;

-- What a tenant has allowed for good, oldest first.
create function allowed_1(t text, p_most int) returns table (tool text, pattern text) language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  return query select x.tool, x.pattern from allowances x where x.tenant_id = t order by x.allowance_id limit p_most;
end $$;

-- The runtime that is in the middle of a tool call of a run: one has begun, or was allowed by a person, and has no end.
-- Null if there is none.
create function tool_runtime_1(t text, p_run text) returns text language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  if exists (
    select x.data ->> 'call_id' from events x where x.tenant_id = t and x.run_id = p_run and x.type = 'tool.started'
    union all
    select x.call_id from approvals x where x.tenant_id = t and x.run_id = p_run and x.state in ('allow_once', 'allow_always')
    except
    select x.data ->> 'call_id' from events x where x.tenant_id = t and x.run_id = p_run and x.type = 'tool.finished')
  then return (select x.runtime from runs x where x.tenant_id = t and x.run_id = p_run); end if;
  return null;
end $$;
