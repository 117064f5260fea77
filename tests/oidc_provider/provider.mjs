// A real OpenID Connect provider for tests: node-oidc-provider on loopback, told by a JSON file what to be.
// Nobody types anything: whoever comes to log in is logged in, as login_hint or else as the first account, and consents.
import { readFileSync } from 'node:fs';
import { Provider } from 'oidc-provider';

const told = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const accounts = new Map(told.accounts.map((claims) => [claims.sub, claims]));

const provider = new Provider(told.issuer, {
  clients: told.clients,
  jwks: { keys: told.keys },
  scopes: ['openid', 'email', 'profile', 'offline_access', ...told.scopes],
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'preferred_username', 'roles', 'groups'] },
  conformIdTokenClaims: false,
  pkce: { required: () => told.requiresPkce },
  cookies: { keys: ['tests'] },
  ttl: { ClientCredentials: told.tokenTtl, AccessToken: told.tokenTtl, IdToken: told.tokenTtl, Interaction: 600, Session: 600, Grant: 600 },
  findAccount: (_ctx, id) => accounts.has(id) ? { accountId: id, claims: async () => accounts.get(id) } : undefined,
  extraTokenClaims: async (_ctx, token) => ({ ...told.tokenClaims, ...(accounts.get(token.accountId)?.token ?? {}) }),
  interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    rpInitiatedLogout: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo: (_ctx, resource) => ({
        scope: told.scopes.join(' '),
        audience: resource,
        accessTokenTTL: told.tokenTtl,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: told.algorithm } },
      }),
    },
  },
});

provider.use(async (ctx, next) => {
  if (!ctx.path.startsWith('/interaction/')) return next();
  const { prompt, params, session } = await provider.interactionDetails(ctx.req, ctx.res);
  let result;
  if (prompt.name === 'login') {
    result = { login: { accountId: params.login_hint ?? told.accounts[0].sub } };
  } else {
    const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
    grant.addOIDCScope(params.scope ?? 'openid');
    for (const resource of [params.resource ?? []].flat()) grant.addResourceScope(resource, told.scopes.join(' '));
    result = { consent: { grantId: await grant.save() } };
  }
  await provider.interactionFinished(ctx.req, ctx.res, result, { mergeWithLastSubmission: true });
  ctx.respond = false;
});

provider.listen(told.port, '127.0.0.1');
